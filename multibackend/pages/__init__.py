"""Pages of HTML that need no network: `pip install 'multibackend[html]'`.

Here is what all of them share: the frame, the style, the script, plotly itself, and what a plot is
made of. `multibackend.pages.runs` is the page of one run or several, `multibackend.parity.html` that
of a comparison.
"""
