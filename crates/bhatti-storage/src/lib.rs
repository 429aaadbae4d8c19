//! Files on disk: images found and checked, atomic writes, free space.
