"""gRPC at both ends: decode, hand over, reply. No decisions."""
