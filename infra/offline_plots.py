"""Make ``dvc plots show`` write pages that need no network: ``python -m infra.offline_plots``.

The default page of DVC fetches Vega when it is opened. This one contains Vega, from vl-convert.
"""

import subprocess

import vl_convert

from ebm_dist.runs.lineage import ROOT
from ebm_dist.storage import write_whole

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">{refresh_tag}<title>Plots</title>
<script>%s</script>
<style>
  :root { color-scheme: light } body { font: 15px/1.5 system-ui, sans-serif; margin: 1rem }
  img { max-width: 100%%; height: auto } table { border-spacing: 12px }
</style></head><body>{plot_divs}</body></html>
"""


def main() -> None:
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", "<\\/script"
    )
    (ROOT / ".dvc/tmp").mkdir(exist_ok=True)
    write_whole(ROOT / ".dvc/tmp/offline.html", (_PAGE % vega).encode())
    subprocess.run(
        ["dvc", "config", "--local", "--quiet", "plots.html_template", "tmp/offline.html"],
        cwd=ROOT,
        check=True,
    )


if __name__ == "__main__":
    main()
