"""The four verbs on the digits model that comes with edgeinfer: optimize, compile, load, infer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import edgeinfer as ei
from edgeinfer.demo import load_digits, model_path
from edgeinfer.transforms import FuseBatchNorm, Simplify

digits = load_digits()
x = digits.images  # float32 (449, 1, 8, 8): images that the model was not trained on

# What is in the model, and what does it cost?
print(ei.inspect(model_path()))

# optimize: rewrite the graph. The report says what was changed, and what was left alone and why.
model = ei.optimize(model_path(), [Simplify(), FuseBatchNorm()])
print(model.report)

# compile: an Artifact for one backend. It is a directory that can be copied to a device.
artifact = ei.compile(model, backend="onnxruntime")
path = Path(tempfile.mkdtemp()) / "digits.edge"
artifact.save(path)

# load verifies every file; infer checks the inputs and runs.
with ei.load(path) as session:
    outputs = ei.infer(session, {"images": x})
    latency = ei.benchmark(session, {"images": x[:1]}, runs=200)
print(f"accuracy on held-out images: {digits.accuracy(outputs['logits']):.2%}")
print(latency)

# Is the optimized model still the same function? Output by output and layer by layer:
comparison = ei.compare(model_path(), model, {"images": x})
print(comparison)
assert comparison.first_bad_layer is None
