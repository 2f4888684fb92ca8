#!/bin/busybox sh
# Prints Chromium's managed policy with the proxy and the certificate authorities of this machine.
# boot.sh calls it. Source of the names: chromeenterprise.google/policies.
set -eu

# Prints a variable of the host's `environment` as JSON.
json_of() {
    value=$(sed -n "s/^$1=//p" /run/polydev/environment | head -n 1)
    value=${value//\\/\\\\}
    printf '"%s"' "${value//\"/\\\"}"
}

# Prints PEM certificates as a JSON list of base64 strings.
json_certificates() {
    [ -f /run/polydev/ca.pem ] || { echo '[]'; return; }
    awk '
        /-----BEGIN CERTIFICATE-----/ { inside = 1; text = ""; next }
        /-----END CERTIFICATE-----/ { inside = 0; list = list comma "\"" text "\""; comma = "," }
        inside { gsub(/[^A-Za-z0-9+\/=]/, ""); text = text $0 }
        END { print "[" list "]" }
    ' /run/polydev/ca.pem
}

proxy=$(json_of HTTPS_PROXY)
if [ "$proxy" = '""' ]; then
    proxy_settings='{"ProxyMode": "direct"}'
else
    proxy_settings="{\"ProxyMode\": \"fixed_servers\", \"ProxyServer\": $proxy,
        \"ProxyBypassList\": $(json_of NO_PROXY)}"
fi

cat <<POLICY
{
    "ProxySettings": $proxy_settings,
    "CACertificates": $(json_certificates),
    "AutofillAddressEnabled": false,
    "AutofillCreditCardEnabled": false,
    "BackgroundModeEnabled": false,
    "BrowserSignin": 0,
    "DefaultBrowserSettingEnabled": false,
    "DnsOverHttpsMode": "off",
    "MetricsReportingEnabled": false,
    "NetworkPredictionOptions": 2,
    "PasswordManagerEnabled": false,
    "PromotionsEnabled": false,
    "SearchSuggestEnabled": false,
    "SyncDisabled": true,
    "TranslateEnabled": false
}
POLICY
