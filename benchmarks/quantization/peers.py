"""Quantize the shared models with the peers, in an environment of their own.

    python peers.py OUT [MODEL ...]

Writes for each model, as far as the peer can do it, `OUT/MODEL.ort.onnx` (ONNX Runtime's quantize_static:
uint8 activations, int8 weights per channel, min-max), `OUT/MODEL.nncf_ov.xml` (NNCF on OpenVINO) and
`OUT/MODEL.nncf_onnx.onnx` (NNCF on ONNX), and `OUT/peers.json` with the seconds each took or why it failed.
Peers get the same 100 calibration rows, and their own recommended preprocessing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import shared_models as shared


def with_ort(name: str, out: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feeds = iter(shared.calibration(name))

    class Reader(CalibrationDataReader):
        def get_next(self):
            return next(feeds, None)

    ready = out / f"{name}.ready.onnx"
    try:
        quant_pre_process(str(shared.path(name)), str(ready), skip_symbolic_shape=True)
    except Exception:
        ready = shared.path(name)
    quantize_static(
        str(ready),
        str(out / f"{name}.ort.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def with_nncf_openvino(name: str, out: Path) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(shared.path(name)))
    feeds = shared.calibration(name)
    ov.save_model(
        nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds), **_kind(nncf, name)),
        str(out / f"{name}.nncf_ov.xml"),
        compress_to_fp16=False,
    )


def with_nncf_onnx(name: str, out: Path) -> None:
    import nncf
    import onnx

    model = onnx.load(str(shared.path(name)))
    feeds = shared.calibration(name)
    quantized = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds), **_kind(nncf, name))
    onnx.save(quantized, str(out / f"{name}.nncf_onnx.onnx"))


def _kind(nncf, name: str) -> dict:
    return {"model_type": nncf.ModelType.TRANSFORMER} if name.startswith("minilm") else {}


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    report_path = out / "peers.json"
    report = json.loads(report_path.read_text()) if report_path.exists() else {}
    for name in sys.argv[2:] or shared.names():
        for peer, quantize in (
            ("ort", with_ort),
            ("nncf_ov", with_nncf_openvino),
            ("nncf_onnx", with_nncf_onnx),
        ):
            key = f"{name}.{peer}"
            if key in report and "error" not in report[key]:
                continue
            started = time.perf_counter()
            try:
                quantize(name, out)
                report[key] = {"seconds": time.perf_counter() - started}
            except BaseException as error:  # a peer that fails is a cell of the table
                if isinstance(error, KeyboardInterrupt):
                    raise
                report[key] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            print(key, report[key], flush=True)
            report_path.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
