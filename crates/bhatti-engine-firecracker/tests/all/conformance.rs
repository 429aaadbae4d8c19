//! Firecracker passes the suite every engine passes.

use crate::harness::FirecrackerHarness;

bhatti_engine::conformance_tests!(ignored "needs a real Firecracker"; FirecrackerHarness::new());
