//! virtio-fs (placeholder until the next commit).
