//! Framing, versions and descriptor passing; see proto/supervisor.proto.
