"""Make the model of ``xdeepsd.load_model("demo")``: a small stack trained on the generated climate, as the demo does.

    .venv/bin/python ci/demo_model.py [FOLDER]    # default: xdeepsd/models/demo_model/; some minutes

Networks of 16 channels keep it under 200 kB. The last of the three years is held out; its errors are printed and saved
with the model. Seeded: on one machine the weights come out the same, bit for bit.
"""

import dataclasses
import sys

import xdeepsd
from xdeepsd.models.files import DEMO

FACTORS, SEEN, HELD_OUT = (2, 2, 2), slice("2001", "2002"), "2003"


def main(folder: str) -> None:
    climate = xdeepsd.make_climate(seed=0)
    levels = xdeepsd.make_levels(climate["precipitation"], climate[["elevation"]], FACTORS)
    seen = [level.sel(time=SEEN).compute() for level in levels]
    model = xdeepsd.train_stack(seen, xdeepsd.TrainConfig(channels=(16, 16), steps=2000, seed=0))
    means = [level["precipitation"].mean("time") for level in (seen[-1], seen[0])]
    coarse, truth = (level["precipitation"].sel(time=HELD_OUT).compute() for level in (levels[0], levels[-1]))
    fields = {"xdeepsd": xdeepsd.downscale(coarse, model), **xdeepsd.baselines(coarse, truth, *means)}
    errors = xdeepsd.compare(fields, truth).round(4)
    print(errors)
    facts = {
        "data": f"{climate.attrs['title']} (xdeepsd.make_climate): no observations, for trying things out",
        "licence": "BSD-3-Clause, as xdeepsd",
        "errors_on": f"{HELD_OUT}, held out",
        "errors": errors.to_dict("index"),
    }
    xdeepsd.save_model(dataclasses.replace(model, training={**model.training, **facts}), folder, overwrite=True)
    print(model.fingerprint())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(DEMO))
