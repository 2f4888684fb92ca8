"""Web pages of the controller.

`bootstrap.py` serves `server.make_web_app` in front of the API. Each module in `pages/` renders
Jinja templates with data from the API's functions and the store's queries: whole pages under their
own paths, and fragments under `/fragments/`, which the page fetches again after an event. Pages
only read. Every action of a user is a request of the browser to the API, as of any client, so that
changes are made and checked in one place.

`static/` holds our own assets; others come from npm packages at locked versions. The
Content-Security-Policy allows no inline script and nothing from other origins; output of machines
is shown as text.
"""
