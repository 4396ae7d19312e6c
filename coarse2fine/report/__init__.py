"""Pages of results, and the local viewer.

`image_page.write_report` gathers what a page shows and fills in ``web/report.html.j2``; `batch_page.write_batch_report`
fills in ``web/batch.html.j2`` for a folder of results. Both extend ``web/page.html.j2``. ``web/view.html`` is the page
of the viewer.
"""
