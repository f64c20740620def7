#!/usr/bin/env bash
# Fused optimizers change parameters without raising their version counter, so a gradient of an older graph is wrong
# without an error.
#
# Versions: torch 2.14.1 and numpy 2.3.5 on Python 3.11, CPU.
#
# Expected: optimizer.step() changes the parameters in place, which raises `parameter._version`. If a graph that was
# computed before the step is differentiated after it, autograd sees the version and raises "one of the variables needed
# for gradient computation has been modified by an inplace operation". This is what SGD, Adam, AdamW and Adagrad do with
# foreach=False and foreach=True.
#
# Found: with fused=True all four leave `_version` where it was, although the values change. Differentiating the older
# graph raises nothing and returns a gradient that belongs to no set of weights: for the loss |x W|^2 it is
# 2 (x W_old) W_new. Code that caches something per version of a parameter, such as quantized weights, goes stale in the
# same way.
#
# Output of the run that this header describes:
#   SGD     foreach=False: version raised, stale graph refused
#   SGD     foreach=True : version raised, stale graph refused
#   SGD     fused=True   : version kept, stale graph gives 2 (x W_old) W_new
#   Adam    foreach=False: version raised, stale graph refused
#   Adam    foreach=True : version raised, stale graph refused
#   Adam    fused=True   : version kept, stale graph gives 2 (x W_old) W_new
#   AdamW   foreach=False: version raised, stale graph refused
#   AdamW   foreach=True : version raised, stale graph refused
#   AdamW   fused=True   : version kept, stale graph gives 2 (x W_old) W_new
#   Adagrad foreach=False: version raised, stale graph refused
#   Adagrad foreach=True : version raised, stale graph refused
#   Adagrad fused=True   : version kept, stale graph gives 2 (x W_old) W_new
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet torch==2.14.1 numpy==2.3.5
environment/bin/python - <<'PYTHON'
import torch

found = []
for name in ("SGD", "Adam", "AdamW", "Adagrad"):
    for option, value in (("foreach", False), ("foreach", True), ("fused", True)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 1, bias=False)
        optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.5, **{option: value})
        x = torch.randn(4, 3, requires_grad=True)
        loss = layer(x).square().sum()
        old, version = layer.weight.detach().clone(), layer.weight._version
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        new = layer.weight.detach()
        assert not torch.allclose(old, new), "the step must change the weights"
        raised = "raised" if layer.weight._version > version else "kept"
        try:
            (gradient,) = torch.autograd.grad(loss, x)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            stale = "refused"
        else:
            assert torch.allclose(gradient, 2 * (x @ old.T) @ new)
            assert not torch.allclose(gradient, 2 * (x @ old.T) @ old)
            assert not torch.allclose(gradient, 2 * (x @ new.T) @ new)
            stale = "gives 2 (x W_old) W_new"
        print(f"{name:7} {option + '=' + str(value):13}: version {raised}, stale graph {stale}")
        found.append((option == "fused", raised, stale))

expected = {(False, "raised", "refused"), (True, "kept", "gives 2 (x W_old) W_new")}
if set(found) != expected:
    raise SystemExit("the behaviour has changed: read the head of this script again")
PYTHON
