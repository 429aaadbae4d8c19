//! QEMU passes the suite every engine passes.

use crate::harness::QemuHarness;

bhatti_engine::conformance_tests!(QemuHarness::new());
