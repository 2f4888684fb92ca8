"""The controller's HTTP API (SPEC section 5), port 4000 on localhost.

A router per resource, `schemas.py` (what goes over the wire), `problems.py` (errors to RFC 9457),
`guard.py` (who may ask, and how much). A request writes what is wanted and answers; workflows do
the work. It must not know DBOS, SQL or a host agent's wire.

Everything but `/`, `/health`, `/openapi.json` and signing up and in needs `Authorization: Bearer
<token>`, or the sign-in cookie and, for changes, `X-CSRF-Token`. The administrator's token is in
`POLYDEV_ADMIN_TOKEN` or in `<state_dir>/controller/admin-token`.

    GET  /                                    text/plain: what this is; to browsers the pages
    GET  /health                              {status, version, checks: {host: bool, store: bool}}
    GET  /openapi.json
    GET  /api/providers                       [{id, name, accepts, apiKey: {url, example}}]
    GET  /api/doctor                          {ok, checks: [{name, ok, message, hint, vm_id,
                                              host_id}]}; administrators: everything, others: what
                                              is theirs
    GET  /metrics                             Prometheus; administrators, or POLYDEV_METRICS_TOKEN
    GET  /api/events                          SSE: what changes of one's own, with ids; goes on
                                              after `Last-Event-ID` or `?after=<id>`
    GET  /api/account/audit                   [entry]: what one did, or was done to one's own
    GET  /api/admin/audit                     [entry]: everything, for administrators

    POST /api/auth/start {provider}           202 {sessionId, status}; the live session if there is
         (also /api/vm/auth/start)                one for that provider already
    POST /api/auth/key {provider, apiKey}     202 {sessionId, status}: the same without a login; 409
                                              while another session of that provider goes on
    GET  /api/auth/sessions?live=             [SessionSummary], the newest first
    GET  /api/auth/session/{id}               Session; `?after=<version>&wait=<s, at most 30>`
                                              answers when it is no longer that version
    GET  /api/auth/session/{id}/events        SSE: `event: session`, `data: Session`, until its end
    GET  /api/auth/session/{id}/complete      {success, sessionId, cliVM: {vmId, ipAddress}};
    POST      the same                            409 until it is completed
    POST /api/auth/session/{id}/cancel        202 Session; 409 `session-ended` if it has ended
    POST /api/auth/session/{id}/input         {code} or {callbackUrl}: 202 {accepted: true};
                                              409 if nobody waits for it, 422 if it is refused
    POST /api/auth/session/{id}/view          201 {ticket, expiresAt}: one look into its browser
                                              machine; 409 if there is none now
    WS   /api/auth/session/{id}/view?ticket=  RFB of that machine, both ways

    POST /api/vm/create {vmType}              202 Machine (status `creating`); vmType: cli, browser
    POST /api/vm/destroy {vmId}               202 Machine (status `destroying`)
    POST /api/vm/{vmId}/stop                  202 Machine; 409 if it is on its way elsewhere
    POST /api/vm/{vmId}/start                 202 Machine; the same
    POST /api/vm/{vmId}/hibernate             202 Machine; 409 also while it is in use
    POST /api/vm/{vmId}/resume                202 Machine; starts one that is stopped
    GET  /api/vm/list                         [Machine], the oldest first
    GET  /api/vm/active-cli                   {vmId, ipAddress, status, createdAt}; 404
    GET  /api/vm/{vmId}                       Machine; `?after=<version>&wait=<s>` as above
    GET  /api/vm/{vmId}/console?tail_bytes=N  text/plain, without control characters
    GET  /api/vm/{vmId}/errors?tail_bytes=N   the same of its VMM
    GET  /api/vm/{vmId}/usage?last=N          {periodSeconds, limits: {cpu, memoryBytes},
                                              samples: [{at, cpu, memoryBytes}]}
    WS   /api/vm/{vmId}/exec                  the frames of hostapi.py: first a text ExecRequest
    WS   /api/vm/{vmId}/terminal              ?columns=&rows=&name=&wake=: binary frames both ways,
                                              text {resize: [columns, rows]}; {notice} while its
                                              machine wakes up; ends with an ExecEnd
    GET  /api/vm/{vmId}/files?path=           {path, entries: [{name, path, kind, size,
         DELETE (&withContent=)                   modifiedAt}], more}; 204
    GET  /api/vm/{vmId}/files/content?path=   the file, as an attachment
         PUT (&replace=)                          its bytes: 201 {name, path, size}
    POST /api/vm/{vmId}/files/folder?path=    204; also /move?path=&to=

    POST /api/chat/turn {provider, text}      200 application/x-ndjson, one event a line:
             {type: "delta", text}                a piece of the answer as it comes
             {type: "text", text}                 a finished message (repeats its deltas, if any)
             {type: "tool", name}                 the CLI uses a tool
             {type: "notice", text}               a word of Polydev's: its machine wakes up
             {type: "error", code, message, hint}
             {type: "end", ok, text}              always last; text is the whole answer

    GET  /api/chats?provider=                 [Chat], the newest first
    POST /api/chats {provider, title?}        201 Chat
    GET  /api/chats/{id}                      Chat; PATCH {title}: Chat; DELETE: 204
    POST /api/chats/{id}/turns {text}         202 {chatId, turn}; 409 while a turn goes on
    POST /api/chats/{id}/stop                 202 Chat; `turn_ended` tells when it has stopped
    POST /api/chats/{id}/permissions/{requestId} {optionId}  202 {accepted}; 409 if it is decided
    GET  /api/chats/{id}/events?after=&limit= [ChatEvent], as far as they are stored
    GET  /api/chats/{id}/stream               SSE: `data: ChatEvent`; goes on after `Last-Event-ID`
                                              or `?after=<id>`, with every event once, in order

    GET  /api/credentials                     [Credential], never with what is sealed
    POST /api/credentials/{id}/validate       {validity, reason, refreshed}: asks the CLI, and takes
                                              over tokens that it has renewed
    POST /api/credentials/{id}/revoke         202 Credential (`revoking`); gone once its machine is
                                              rid of it
    POST /api/credentials/{id}/export         {provider, kind, path, credentials}: to its owner

    GET  /api/account/ways                    {signUp, oidc: {name} or null, supabase}
    POST /api/account/sign-up                 {email, password, invitation?}: 201 Account, cookie
    POST /api/account/sign-in                 {email, password}: Account, cookie; 401, 429
    POST /api/account/sign-out                204
    GET  /api/account/oidc/start              303 to the OpenID provider; `?invitation=<code>`
    GET  /api/account/oidc/callback           303 to `/`, cookie
    GET  /api/account                         {id, email, role, createdAt, via, scopes, signInId,
                                              csrfToken}
    POST /api/account/password                {current, new}: {signInsEnded, tokensKept}
    GET  /api/account/usage                   {used, limits}: {machines, memoryMib, sessions} each
    GET  /api/account/tokens                  [Token], never with what they are
    POST /api/account/tokens                  {name, scopes, expiresInDays?}: 201, `token` this once
    DELETE /api/account/tokens/{id}           204
    GET  /api/account/sign-ins                [{signInId, source, userAgent, seenAt, current, ...}]
    DELETE /api/account/sign-ins/{id}         204
    GET  /api/admin/people                    [Person]
    POST /api/admin/people/{id}/disable       Person; also /enable, and /role {role}
    GET  /api/admin/invitations               [Invitation]; POST {email?, role?, expiresInDays?}:
                                              201, `code` this once; DELETE …/{id}: 204

    DELETE /api/account {password}            202 Person (`deletingAt`): everything of theirs goes
    DELETE /api/admin/people/{id}             the same, for administrators; 404 once it is done

    GET  /api/admin/hosts                     [{hostId, state, memoryMib, vcpus, machines, ...}]
    POST /api/admin/hosts/{id}/drain {reason} Host; also /activate; DELETE …/{id}: 204
    GET  /api/admin/machines?userId=          [Machine with user_id, host_id, session_id]
    POST /api/admin/machines/{id}/destroy     {reason}: 202
    GET  /api/admin/sessions?userId=&live=    [SessionSummary]
    POST /api/admin/sessions/{id}/cancel      {reason}: 202 SessionSummary

    GET  /api/admin/keys                      [{keyId, createdAt, seals, opens, credentials,
                                              secrets}]
    POST /api/admin/keys/rotate               202 {rotationId, keyId, left, over}
    GET  /api/admin/keys/rotate/{rotationId}  how far it is
    DELETE /api/admin/keys/{keyId}            204; 409 `key-in-use` while it seals or is had

Session: {sessionId, provider, method (login, api_key), status, step, steps: [{step, startedAt,
endedAt, seconds, outcome}],
oauthUrl, ownBrowserUrl, accepts, ahead (in the queue, or null), cliVM: {vmId, ipAddress} or null,
error: {code, message} or null, createdAt, expiresAt, endedAt, version}. Statuses: queued, running,
waiting_for_person, completed, failed, expired, cancelled.

Machine: {vm_id, vm_type, ip_address, status, created_at, memory_mib, vcpus, disk_mib, error, sleep,
version}; `sleep` tells when, why and how it last slept and woke (`SleepView`). One that sleeps is
woken by whatever reaches into it: terminal, files, exec, chats, logins. A machine that is gone is
answered once more as `destroyed` by a waiting GET, then 404.

Chat: {chatId, provider, title, status, turn, vmId, createdAt, updatedAt}; statuses: idle, queued,
running, waiting (for its person to allow something). ChatEvent: {id, turn, kind, at, ...}; what
else it has, `ChatEventView` in `chat_schemas.py` says of each kind.

SessionSummary: {sessionId, userId, provider, method, status, step, cliVmId, error, createdAt,
expiresAt, endedAt}.

Listings are JSON arrays, in pages: `?limit=` and `?cursor=`; `Link: <…>; rel="next"` says where
they go on. `userId` in a body: 403 but for administrators, who may act for anybody; 404 if there is
no such person. Most POSTs heed `Idempotency-Key` (`repeats.py`); those whose answers hold a secret
ignore it.

Problems: application/problem+json {type, title, status, code, detail, hint}; 401 with
WWW-Authenticate, 429 and 503 with Retry-After. Which of them a route can answer, its `responses=`
say (`answers.py`), and the contract test holds it to that.
"""
