//! QEMU's microvm machine as an engine: hardware virtualisation where it works, emulation where not.
