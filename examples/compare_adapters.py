"""Train two adapters on the shipped prior, compare them image by image, and plot: for a notebook, or as a script.

    python -m examples.compare_adapters

Some minutes on two CPU cores. Every score is in the DataFrame `scores`; with more seeds the same study has intervals,
controls and a page: `megasr study run`.
"""

from pathlib import Path

from ablations import Ablation, Study, run_study, tidy


def main(steps: int | None = None) -> None:
    """Run the study of examples/compare_adapters.yaml with one seed; `steps` replaces those of the recipe."""
    path = "model.adapter.guidance"
    plain = Ablation("plain", {path: ()}, (path,), "no guidance")
    edges = Ablation("edges", {path: ("hed",)}, (path,), "HED edges of lq")
    study = Study("edges_or_not", "Do edges of lq help?", plain, (edges,), primary_metric="fsim")
    result = run_study(study, Path(__file__).with_suffix(".yaml"), Path("runs/edges_or_not"), steps=steps)
    scores = tidy(result).pivot_table("value", ["metric", "key"], "ablation")
    print(scores.groupby("metric").mean().round(4))
    axes = scores.loc["fsim"].plot.scatter("plain", "edges", title="FSIM of every image")
    axes.axline((0.5, 0.5), slope=1)
    axes.figure.savefig("runs/edges_or_not/fsim.png")


if __name__ == "__main__":
    main()
