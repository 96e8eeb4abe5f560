"""Install the built wheel into fresh environments, run it there, and make the table of docs/install.md.

    pip install build uv twine
    python benchmarks/compatibility.py PYTHON … [--installs core,device,full] [--resolutions lowest,highest]

Each PYTHON is an interpreter. For every one, each kind of install and each resolution of dependencies it
prints a row: the size of what was installed; how long installing took (the second time without the network,
for uv keeps what it downloads); time and peak memory of a program that quantizes, compiles, loads and runs a
model, and publishes it where everything is installed. On a device the program loads and runs it only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTALLS = ("core", "device", "full")
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}

MAKE = """
import numpy as np, onnx, onnx.parser, edgeinfer as ei
from edgeinfer.transforms import QuantizeStatic, Simplify
proto = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 8, 16, 16] x) => (float[N, 8, 16, 16] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)  b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2)  d = Relu(c)
    y = Conv<pads = [1, 1, 1, 1]>(d, w3)
}''')
rng = np.random.default_rng(0)
for name, shape in (("w1", (64, 8, 3, 3)), ("w2", (64, 64, 3, 3)), ("w3", (8, 64, 3, 3))):
    proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype("f4") / 20))
    proto.graph.initializer[-1].name = name
x = [{"x": rng.normal(size=(1, 8, 16, 16)).astype("f4")} for _ in range(4)]
model = ei.optimize(proto, [Simplify(), QuantizeStatic(calibration=x)], target="onnxruntime")
ei.compile(model, "onnxruntime").save(sys.argv[1])
if sys.argv[2] == "full":
    with ei.load(ei.compile(proto, "openvino")) as session:
        assert session.infer(x[0])["y"].shape == (1, 8, 16, 16)
    import edgeinfer.fleet
    with edgeinfer.fleet.open(sys.argv[1] + ".fleet") as fleet:
        fleet.publish("m", [sys.argv[1]], version="1", interface="m/1")
"""
RUN = """
import sys, resource, time
begun = time.perf_counter()
MAKE
import numpy as np, edgeinfer as ei
with ei.load(sys.argv[1]) as session:
    y = ei.infer(session, {"x": np.ones((1, 8, 16, 16), "f4")})["y"]
assert y.shape == (1, 8, 16, 16)
import json
from importlib.metadata import version
names = ("numpy", "onnxruntime", "onnx")
found = {}
for name in names:
    try:
        found[name] = version(name)
    except Exception:
        pass
print(json.dumps({"s": time.perf_counter() - begun,
                  "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "versions": found}))
"""


def uv(*arguments: str, python: Path | None = None) -> None:
    command = ["uv", *arguments, *(("--python", str(python)) if python is not None else ())]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1500:])


def install(venv: Path, wheel: Path, kind: str, resolution: str) -> None:
    python = venv / "bin" / "python"
    how = ("pip", "install", "--resolution", RESOLUTIONS[resolution])
    if kind == "device":
        wanted = ["-r", str(ROOT / "requirements-device.txt"), "onnxruntime>=1.23"]
    else:  # not by the wheel: the lowest are taken of what is asked for directly only
        wanted = ["-r", str(ROOT / "pyproject.toml"), *(("--extra", "all") if kind == "full" else ())]
    uv(*how, *wanted, python=python)
    uv("pip", "install", "--no-deps", str(wheel), python=python)


def size_mb(venv: Path) -> float:
    return (
        sum(
            path.lstat().st_size
            for path in venv.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        )
        / 1e6
    )


def row(interpreter: str, wheel: Path, kind: str, resolution: str, folder: Path) -> dict[str, object]:
    venv = folder / "venv"
    uv("venv", "--clear", "--quiet", str(venv), python=Path(interpreter))
    empty = size_mb(venv)
    begun = time.monotonic()
    try:
        install(venv, wheel, kind, resolution)
    except RuntimeError as error:
        return {"result": f"does not install: {str(error).splitlines()[-1][:120]}"}
    seconds = time.monotonic() - begun
    artifact = folder / "model.edge"
    made = kind != "device"
    shutil.rmtree(f"{artifact}.fleet", ignore_errors=True)
    code = RUN.replace("MAKE", MAKE if made else "")
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", code, str(artifact), kind], capture_output=True, text=True
    )
    if done.returncode:
        return {"result": f"fails: {done.stderr.strip().splitlines()[-1][:160]}", "mb": size_mb(venv) - empty}
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    found = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    return {
        "result": "works",
        "mb": size_mb(venv) - empty,
        "install_s": seconds,
        "run_s": answer["s"],
        "peak_mb": answer["mb"],
        "versions": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--installs", default=",".join(INSTALLS))
    parser.add_argument("--resolutions", default=",".join(RESOLUTIONS))
    options = parser.parse_args()
    failed = 0
    print("| Python | install | dependencies | works | MB | install s | run s | peak MB | versions |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run(
            [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT)],
            check=True,
            capture_output=True,
        )
        built = sorted((folder / "dist").iterdir())
        subprocess.run(
            [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)],
            check=True,
            stdout=sys.stderr,
        )
        wheel = next(path for path in built if path.suffix == ".whl")
        for interpreter in options.pythons:
            version = subprocess.run([interpreter, "-c", "import platform; print(platform.python_version())"],
                                     capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
            for kind in options.installs.split(","):
                for resolution in options.resolutions.split(","):
                    found = row(interpreter, wheel, kind, resolution, folder)
                    failed += found["result"] != "works"
                    cells = [version, kind, resolution, found["result"]]
                    cells += [f"{found[key]:.0f}" if key in found else "" for key in ("mb",)]
                    cells += [f"{found[key]:.1f}" if key in found else "" for key in ("install_s", "run_s")]
                    cells += [
                        f"{found['peak_mb']:.0f}" if "peak_mb" in found else "",
                        found.get("versions", ""),
                    ]
                    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
