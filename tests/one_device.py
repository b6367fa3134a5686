"""The environment of a program that a test starts with one simulated device instead of eight."""

import os

ONE_DEVICE = os.environ | {
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace("device_count=8", "device_count=1")
}
