//! The executable specification of every operation.
