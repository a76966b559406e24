//! Single instructions against the manual.

mod paging;
