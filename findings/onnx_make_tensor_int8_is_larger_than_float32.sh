#!/usr/bin/env bash
# An int8 initialiser made by onnx.helper.make_tensor takes more bytes in the file than the same weights in float32.
#
# Versions: onnx 1.23.2, numpy 2.3.5, protobuf 6.33.1 on Python 3.11.
#
# Expected: int8 weights take a quarter of the bytes of float32 weights, and 4-bit weights an eighth.
#
# Found: without raw=True, make_tensor puts integers of up to 32 bits into the field int32_data, which protobuf writes
# as varints: 1 byte for 0 to 127, 2 bytes for 128 to 255, and 10 bytes for every negative number. Zero-centred int8
# weights therefore take 5.5 bytes each, float32 takes 4. UINT4 and INT4 are packed two to a number from 0 to 255 first,
# and take 0.75 bytes each on average instead of 0.5. With raw=True, and with onnx.numpy_helper.from_array, the sizes are
# the expected ones. The values are right in every case, and the checker accepts all.
#
# Output of the run that this header describes (bytes per weight, 10,000 weights):
#   FLOAT raw=False: 4.00    raw=True: 4.00
#   INT8  raw=False: 5.47    raw=True: 1.00
#   UINT8 raw=False: 1.50    raw=True: 1.00
#   INT4  raw=False: 0.75    raw=True: 0.50
#   UINT4 raw=False: 0.75    raw=True: 0.50
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet onnx==1.23.2 numpy==2.3.5 protobuf==6.33.1
environment/bin/python - <<'PYTHON'
import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

N = 10_000
found = {}
for name, low, high in (("FLOAT", -128, 128), ("INT8", -128, 128), ("UINT8", 0, 256), ("INT4", -8, 8), ("UINT4", 0, 16)):
    kind = getattr(TensorProto, name)
    values = np.random.default_rng(0).integers(low, high, N)
    typed = values.astype(helper.tensor_dtype_to_np_dtype(kind))
    plain = helper.make_tensor("w", kind, [N], typed.tolist())
    raw = numpy_helper.from_array(typed, "w")
    for tensor in (plain, raw):
        checker.check_tensor(tensor)
        assert (numpy_helper.to_array(tensor).astype(int) == values).all()
    found[name] = plain.ByteSize() / N, raw.ByteSize() / N
    print(f"{name:5} raw=False: {found[name][0]:.2f}    raw=True: {found[name][1]:.2f}")

expected = {"FLOAT": (4, 4), "INT8": (5.5, 1), "UINT8": (1.5, 1), "INT4": (0.75, 0.5), "UINT4": (0.75, 0.5)}
for name, sizes in expected.items():
    if not np.allclose(found[name], sizes, atol=0.06):
        raise SystemExit("the behaviour has changed: read the head of this script again")
PYTHON
