"""Bytes: the codec, the limits and the signatures. The only place that knows protobuf field names."""
