//! How much memory each level gets. A level needs room for its own kernel and for its image twice (as loaded,
//! and unpacked while the loaded one is still there); what its own guest gets is the rest.

use crate::failure::Failure;

/// What a level's kernel and programs need besides the images.
pub const HEADROOM_BYTES: u64 = 96 << 20;
/// Sizes are whole multiples of this.
const GRAIN_BYTES: u64 = 1 << 20;
/// What level 1 gets when the user says nothing, unless the depth needs more.
pub const DEFAULT_BYTES: u64 = 1 << 30;

/// What a level with an image of `image_bytes` takes for itself.
fn reserve(image_bytes: u64) -> u64 {
    image_bytes
        .saturating_mul(2)
        .saturating_add(HEADROOM_BYTES)
        .checked_next_multiple_of(GRAIN_BYTES)
        .unwrap_or(u64::MAX)
}

/// The least memory level 1 can do with, for levels with images of these sizes, level 1 first.
pub fn minimum(image_bytes: &[u64]) -> u64 {
    image_bytes
        .iter()
        .fold(0, |sum, &bytes| sum.saturating_add(reserve(bytes)))
}

/// What a level gives to its guest: its own memory less what it takes for itself.
pub fn inner(own_bytes: u64, image_bytes: u64) -> u64 {
    own_bytes.saturating_sub(reserve(image_bytes)) / GRAIN_BYTES * GRAIN_BYTES
}

/// The memory of level 1, as asked for or by default.
///
/// # Errors
/// Less was asked for than the levels need.
pub fn outermost(asked_bytes: Option<u64>, image_bytes: &[u64]) -> Result<u64, Failure> {
    let minimum = minimum(image_bytes);
    match asked_bytes {
        None => Ok(DEFAULT_BYTES.max(minimum)),
        Some(asked) if asked >= minimum => Ok(asked),
        Some(asked) => Err(Failure::new(
            format_args!("cannot run {} levels", image_bytes.len()),
            format_args!(
                "--memory gives {}M, their kernels, images and headroom need {}M",
                asked / GRAIN_BYTES,
                minimum / GRAIN_BYTES
            ),
            format_args!(
                "give --memory {}M or more, or a smaller --depth",
                minimum / GRAIN_BYTES
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn each_level_keeps_its_share() {
        let images = [54 * MIB, 30 * MIB, 6 * MIB];
        assert_eq!(minimum(&images), (3 * 96 + 2 * 90) * MIB);
        let l1 = outermost(None, &images).expect("the default is enough");
        assert_eq!(l1, 1024 * MIB);
        let l2 = inner(l1, images[0]);
        assert_eq!(l2, (1024 - 96 - 108) * MIB);
        assert_eq!(inner(l2, images[1]), (820 - 96 - 60) * MIB);
    }

    #[test]
    fn the_least_memory_is_enough_to_the_innermost() {
        let images = [100 * MIB + 5, 60 * MIB + 1, 6 * MIB];
        let mut memory = minimum(&images);
        for &image in &images {
            assert!(memory >= reserve(image));
            memory = inner(memory, image);
        }
    }

    #[test]
    fn too_little_is_refused_with_the_least() {
        let failure = outermost(Some(128 * MIB), &[54 * MIB, 6 * MIB]).expect_err("too little");
        assert_eq!(
            failure.to_string(),
            "cannot run 2 levels: --memory gives 128M, their kernels, images and headroom need \
             312M; give --memory 312M or more, or a smaller --depth"
        );
    }

    #[test]
    fn deep_demos_get_more_by_default() {
        let images = [500 * MIB, 400 * MIB];
        assert_eq!(outermost(None, &images), Ok(minimum(&images)));
    }

    #[test]
    fn huge_sizes_do_not_overflow() {
        assert_eq!(minimum(&[u64::MAX, u64::MAX]), u64::MAX);
        assert_eq!(inner(5, u64::MAX), 0);
    }
}
