//! Tests against the manual's statements and against the processor itself.

mod api;
mod machine;
mod masked;
mod native;
mod sse;
mod sweep;
mod x87;
