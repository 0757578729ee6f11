//! Tests of the file system server, from the guest's side.
//! `client` is a FUSE client without a kernel; the files are by topic. `device` goes through real virtqueues.

mod client;

mod changes;
mod coherence;
mod containment;
mod data;
mod device;
mod directories;
mod entries;
mod frames;
mod hidden;
mod jail;
mod kernel;
mod partly;
mod races;
mod read_only;
mod scale;
mod suites;
