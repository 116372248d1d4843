//! A backend without data, which counts operations and bytes.
