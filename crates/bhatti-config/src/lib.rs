//! The configuration file: read in layers, checked wholly, typos pointed at.
