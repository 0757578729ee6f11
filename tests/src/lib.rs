//! Integration test fixture.
