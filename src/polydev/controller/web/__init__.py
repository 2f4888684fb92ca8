"""The pages: what people see of Polydev in their browsers.

`app.py` puts `server.make_site` in front of the API. A page module per page renders Jinja templates
(`templates/`) with what the API's own functions and the store's queries tell, as HTML: whole pages
under their own paths, and pieces of pages under `/fragments/`, which the page fetches again when an
event tells of a change. Pages only read. Whatever a person does on them is a request of their
browser to the API, as any client of it sends it, so that there is one place where things are
changed, and checked.

Assets are in `static/` (ours) and from the npm registry at locked versions. The Content-Security-
Policy allows no inline script and nothing from elsewhere; what machines say is text.
"""
