#!/bin/busybox sh
# The browser in which a person logs a CLI in. The browser service steers it through the
# debugging port on 127.0.0.1; what it may do and whom it trusts is policy (browser-policy).
# Its own sandbox stays on: pages are as hostile here as anywhere.
set -eu
. /usr/lib/polydev/service

wait_for_display

# A profile whose browser was killed is taken for one in use by another machine.
rm -f /home/browser/profile/Singleton*

set -- --user-data-dir=/home/browser/profile --remote-debugging-port=9222
set -- "$@" --no-first-run --no-default-browser-check --password-store=basic --mute-audio
set -- "$@" --window-position=0,0 --window-size=1280,800
# Nothing is fetched that no person asked for.
set -- "$@" --disable-background-networking --disable-component-update --disable-sync \
    --disable-default-apps --disable-extensions --disable-breakpad --disable-crash-reporter \
    --disable-domain-reliability --disable-client-side-phishing-detection --no-pings
# There is no GPU, and software emulation of a CPU is too slow to emulate one.
set -- "$@" --disable-gpu --disable-software-rasterizer --disable-lcd-text \
    --disable-smooth-scrolling --disable-threaded-animation
# On an emulated CPU processes take minutes to answer; none of that is a hang.
set -- "$@" --ipc-connection-timeout=600 --disable-gpu-watchdog --disable-hang-monitor \
    --disable-renderer-backgrounding --disable-backgrounding-occluded-windows
# One page at a time in 2 GiB: no processes and caches for pages that may come.
set -- "$@" --renderer-process-limit=1 --process-per-site --disable-features=\
BackForwardCache,SpareRendererForSitePerProcess,CalculateNativeWinOcclusion,Vulkan,WebGPU,\
OptimizationHints,OptimizationGuideModelExecution,OnDeviceModelService,Translate,MediaRouter,\
DialMediaRouteProvider,GlobalMediaControls,InterestFeedContentSuggestions,\
AutofillServerCommunication,WebUIOmniboxPopup,WebUIOmniboxAimPopup,OmniboxPopupAim,\
AiModeOmniboxEntryPoint,NetworkTimeServiceQuerying,SegmentationPlatform,\
AudioServiceOutOfProcess

run_as_browser browser /usr/lib/chromium/chromium "$@" about:blank
