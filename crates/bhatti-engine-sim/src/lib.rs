//! An engine without a hypervisor, with faults on demand: for tests of lifecycle logic.
