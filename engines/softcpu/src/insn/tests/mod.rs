//! Single instructions against the manual.

mod decoding;
mod paging;
