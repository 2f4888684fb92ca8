#!/bin/busybox sh
# Runs the browser in which a user logs a CLI in. The browser service controls it through the
# debugging port on 127.0.0.1; browser-policy sets its proxy and certificate authorities. Its
# sandbox stays on, because pages are hostile.
set -eu
. /usr/lib/polydev/service

wait_for_display

# After a kill, Chromium would think that another machine uses the profile.
rm -f /home/browser/profile/Singleton*

set -- --user-data-dir=/home/browser/profile --remote-debugging-port=9222
set -- "$@" --no-first-run --no-default-browser-check --password-store=basic --mute-audio
set -- "$@" --window-position=0,0 --window-size=1280,800
# No requests that the user did not make.
set -- "$@" --disable-background-networking --disable-component-update --disable-sync \
    --disable-default-apps --disable-extensions --disable-breakpad --disable-crash-reporter \
    --disable-domain-reliability --disable-client-side-phishing-detection --no-pings
# There is no GPU, and an emulated CPU is too slow to emulate one.
set -- "$@" --disable-gpu --disable-software-rasterizer --disable-lcd-text \
    --disable-smooth-scrolling --disable-threaded-animation
# On an emulated CPU, processes may take minutes to answer without being hung.
set -- "$@" --ipc-connection-timeout=600 --disable-gpu-watchdog --disable-hang-monitor \
    --disable-renderer-backgrounding --disable-backgrounding-occluded-windows
# One page at a time in 2 GiB: no spare processes and caches.
set -- "$@" --renderer-process-limit=1 --process-per-site --disable-features=\
BackForwardCache,SpareRendererForSitePerProcess,CalculateNativeWinOcclusion,Vulkan,WebGPU,\
OptimizationHints,OptimizationGuideModelExecution,OnDeviceModelService,Translate,MediaRouter,\
DialMediaRouteProvider,GlobalMediaControls,InterestFeedContentSuggestions,\
AutofillServerCommunication,WebUIOmniboxPopup,WebUIOmniboxAimPopup,OmniboxPopupAim,\
AiModeOmniboxEntryPoint,NetworkTimeServiceQuerying,SegmentationPlatform,\
AudioServiceOutOfProcess

run_as_browser browser /usr/lib/chromium/chromium "$@" about:blank
