//! virtio-vsock (placeholder until the next commit).
