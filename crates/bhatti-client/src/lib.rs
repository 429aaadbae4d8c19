//! A typed client over the HTTP contract.
