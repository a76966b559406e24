//! A picture of the guest's screen in a file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::vm::Frame;

/// A file for a picture, opened before the process is confined.
#[derive(Debug)]
pub struct Screenshot {
    path: PathBuf,
    file: File,
}

impl Screenshot {
    /// Makes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|e| Failure::writing(path, &e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes the picture as PNG.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, frame: &Frame) -> Result<(), Failure> {
        let mut out = BufWriter::new(&self.file);
        encode(frame, &mut out)
            .and_then(|()| out.flush())
            .map_err(|e| Failure::writing(&self.path, &e))
    }
}

/// Writes `frame` as PNG, 8 bits of red, green and blue for each pixel.
fn encode(frame: &Frame, out: impl Write) -> io::Result<()> {
    // A picture has at least one pixel.
    let empty = frame.width == 0 || frame.height == 0;
    let (width, height, rgb) = match empty {
        true => (1, 1, &[0; 3][..]),
        false => (frame.width, frame.height, &frame.rgb[..]),
    };
    let mut encoder = png::Encoder::new(out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let write = || encoder.write_header()?.write_image_data(rgb);
    write().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(frame: &Frame) -> (u32, u32, Vec<u8>) {
        let mut file = Vec::new();
        encode(frame, &mut file).expect("it is written");
        let mut reader = png::Decoder::new(io::Cursor::new(file))
            .read_info()
            .expect("a PNG file");
        let mut rgb = vec![0; reader.output_buffer_size().expect("small")];
        let info = reader.next_frame(&mut rgb).expect("a picture");
        (info.width, info.height, rgb)
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut frame = Frame::black(3, 2);
        frame.rgb[15..18].copy_from_slice(&[1, 2, 3]);
        assert_eq!(round_trip(&frame), (3, 2, frame.rgb.clone()));
    }

    #[test]
    fn a_screen_without_pixels_is_a_black_one() {
        assert_eq!(round_trip(&Frame::black(0, 5)), (1, 1, vec![0; 3]));
    }
}
