#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later

# Proves who gets at a disk and who does not: with certificates, those who have one of
# the right authority and ask the server of the right name; with pre-shared keys, those
# who have the key; by address, process owner, permissions of a socket, and number of
# connections.  Each of the others is refused, and hurts nobody; what the right ones read
# is what the disk has (SHA-256), snapshots too, and what they write is there.  And
# what the manual says is not kept apart is not.

set -euo pipefail
. "$abs_top_srcdir/tests/functions.sh"
requires nbdcopy nbdinfo qemu-img qemu-io certtool psktool sha256sum
nbdkit --dump-config | grep -q '^tls=yes' || skip "this nbdkit is without TLS"
unpack_corpus

disk=$tmp/corpus/c-chain3-v2-b64
guid='%7B00000001-1111-2222-3333-444444444444%7D'

expected_sum ()
{
  awk -F '\t' -v name="$1" '$1 == name { print $5 }' "$PLOOP_CORPUS/MANIFEST.tsv"
}
live_sum=$(expected_sum c-chain3-v2-b64)
snapshot_sum=$(expected_sum c-chain3-v2-b64@1)

serve ()
{
  start_nbdkit "$@" || fail "refused: $* : $(cat "$nbdkit_log")"
}

# serve_tcp ARG...: at a port of 127.0.0.1 that nobody has.  Sets `port`.
serve_tcp ()
{
  local i
  for i in {1..50}; do
    port=$((20000 + RANDOM % 12000))
    listen=(-i 127.0.0.1 -p "$port")
    if start_nbdkit "$@"; then return; fi
    grep -q 'Address already in use' "$nbdkit_log" || fail "refused: $*"
  done
  fail "no port is free, of $i"
}

# admitted WHAT URI SUM: who asks so reads what SUM is of.
admitted ()
{
  local sum
  sum=$(nbdcopy "$2" - | sha256sum) || fail "$1: refused"
  [ "${sum%% *}" = "$3" ] || fail "$1: not the content that it must have"
  say "admitted: $1"
}

# refused WHAT TEXT COMMAND...: COMMAND fails, and says TEXT (an extended regular
# expression).
refused ()
{
  local what=$1 text=$2 status=0
  shift 2
  "$@" > "$tmp/refused" 2>&1 || status=$?
  [ $status -ne 0 ] || fail "$what: admitted"
  grep -Eqi -- "$text" "$tmp/refused" || { cat "$tmp/refused"; fail "$what: not '$text'"; }
  say "refused: $what"
}

# ---- Certificates

# authority DIR: a new one.
authority ()
{
  mkdir -p "$1"
  certtool --generate-privkey --key-type=ecdsa --outfile "$1/ca-key.pem"
  printf '%s\n' 'cn = Storage' ca cert_signing_key > "$1/ca.info"
  certtool --generate-self-signed --load-privkey "$1/ca-key.pem" \
    --template "$1/ca.info" --outfile "$1/ca-cert.pem"
}

# certificate AUTHORITY DIR NAME LINE...: with LINEs in its template.
certificate ()
{
  local ca=$1 file=$2/$3
  mkdir -p "$2"
  printf '%s\n' "${@:4}" encryption_key signing_key > "$file.info"
  certtool --generate-privkey --key-type=ecdsa --outfile "$file-key.pem"
  certtool --generate-certificate --load-ca-certificate "$ca/ca-cert.pem" \
    --load-ca-privkey "$ca/ca-key.pem" --load-privkey "$file-key.pem" \
    --template "$file.info" --outfile "$file-cert.pem"
}

{
  authority "$tmp/ca"
  authority "$tmp/foreign-ca"
  certificate "$tmp/ca" "$tmp/server" server 'cn = store' 'dns_name = localhost' \
    tls_www_server
  certificate "$tmp/ca" "$tmp/client" client 'cn = client' tls_www_client
  certificate "$tmp/foreign-ca" "$tmp/foreign" client 'cn = client' tls_www_client
} > "$tmp/certtool.log" 2>&1 || { cat "$tmp/certtool.log"; fail "certtool"; }
cp "$tmp/ca/ca-cert.pem" "$tmp/server"
cp "$tmp/ca/ca-cert.pem" "$tmp/client"
# One who trusts the server, and whom it has no reason to trust; one who does not
# trust the server; one without a certificate.
cp "$tmp/ca/ca-cert.pem" "$tmp/foreign"
cp -r "$tmp/client" "$tmp/distrustful"
cp "$tmp/foreign-ca/ca-cert.pem" "$tmp/distrustful"
mkdir "$tmp/nothing"
cp "$tmp/ca/ca-cert.pem" "$tmp/nothing"

# tls_uri DIR [HOST]: with what is in DIR.
tls_uri ()
{
  echo "nbds://${2:-localhost}:$port/?tls-certificates=$1"
}

# qemu_args DIR: the same for qemu's programs.
qemu_args ()
{
  qemu_args=(--object "tls-creds-x509,id=tls0,endpoint=client,dir=$1" --image-opts
             "driver=nbd,host=localhost,port=$port,tls-creds=tls0")
}

say "certificates"
serve_tcp --tls=require --tls-certificates="$tmp/server" --tls-verify-peer file="$disk"
[ "$(nbdinfo --json "$(tls_uri "$tmp/client")" | grep -c '"TLS": true')" -eq 1 ] ||
  fail "the connection is not encrypted"
admitted "a client with a certificate" "$(tls_uri "$tmp/client")" "$live_sum"
admitted "the same, a snapshot" \
  "nbds://localhost:$port/$guid?tls-certificates=$tmp/client" "$snapshot_sum"
qemu_args "$tmp/client"
qemu-img convert -O raw "${qemu_args[@]}" "$tmp/raw"
[ "$(sha256sum < "$tmp/raw" | cut -d ' ' -f 1)" = "$live_sum" ] || fail "qemu-img"

refused "a client without TLS" 'TLS|not supported' nbdinfo "nbd://localhost:$port"
refused "qemu without TLS" 'TLS' qemu-img info "nbd://localhost:$port"
refused "a list without TLS" '' nbdinfo --list "nbd://localhost:$port"
refused "a certificate of another authority" '' nbdinfo "$(tls_uri "$tmp/foreign")"
qemu_args "$tmp/foreign"
refused "qemu with such a one" '' qemu-img info "${qemu_args[@]}"
qemu_args "$tmp/client"
refused "no certificate" '' nbdinfo "$(tls_uri "$tmp/nothing")"
refused "the server, by one who trusts another authority" 'certificate' \
  nbdinfo "$(tls_uri "$tmp/distrustful")"
refused "the server, under a name that it does not have" 'certificate' \
  nbdinfo "$(tls_uri "$tmp/client" 127.0.0.1)"
admitted "the first one, after all of them" "$(tls_uri "$tmp/client")" "$live_sum"

# Writing.
qemu-io -c 'write -P 7 0 1M' -c flush "${qemu_args[@]}" > "$tmp/io.log" ||
  { cat "$tmp/io.log"; fail "qemu-io"; }
qemu-io -f raw -c 'write -P 7 0 1M' "$tmp/raw" > /dev/null

# A disk whose base comes that way.
read_thin ()
{
  run_nbdkit -U - "$PLUGIN" file="$tmp/thin.hds" base="$1" \
    --run "nbdcopy \"\$uri\" $tmp/copy"
}
"$PLOOP_IMG" create -q "$tmp/thin.hds" 16M
read_thin "$(tls_uri "$tmp/client")" || fail "a base with TLS"
cmp "$tmp/copy" "$tmp/raw" || fail "a base with TLS: not its content"
refused "a base with a certificate of another authority" 'nbds://.*' \
  read_thin "$(tls_uri "$tmp/foreign")"
stop_nbdkit
"$PLOOP_IMG" check "$disk" > /dev/null || fail "the image is not sound"
"$PLOOP_IMG" compare -q "$disk" "$tmp/raw" || fail "not what was written"
live_sum=$(sha256sum < "$tmp/raw" | cut -d ' ' -f 1)

# Without --tls-verify-peer, who has no certificate is admitted: the manual says so.
serve_tcp --tls=require --tls-certificates="$tmp/server" -r file="$disk"
nbdinfo "$(tls_uri "$tmp/nothing")" > /dev/null || fail "no certificate was asked for"
refused "a client without TLS" 'TLS|not supported' nbdinfo "nbd://localhost:$port"
stop_nbdkit

# ---- Keys

say "pre-shared keys"
listen=()
mkdir "$tmp/alice" "$tmp/mallory"
psktool -u alice -p "$tmp/alice/keys.psk" > /dev/null 2>&1
psktool -u alice -p "$tmp/mallory/keys.psk" > /dev/null 2>&1
psk_uri ()
{
  echo "nbds+unix://$1@/$3?socket=$sock&tls-psk-file=$tmp/$2/keys.psk"
}
serve --tls=require --tls-psk="$tmp/alice/keys.psk" -r file="$disk"
admitted "one who has the key" "$(psk_uri alice alice '')" "$live_sum"
admitted "the same, a snapshot" "$(psk_uri alice alice "$guid")" "$snapshot_sum"
psk_args ()
{
  psk_args=(--object "tls-creds-psk,id=tls0,endpoint=client,dir=$tmp/$1,username=alice"
            --image-opts "driver=nbd,path=$sock,tls-creds=tls0")
}
psk_args alice
qemu-img compare --object "${psk_args[1]}" --image-opts "${psk_args[3]}" \
  "driver=raw,file.filename=$tmp/raw" || fail "qemu-img with a key"
refused "one who has another key" '' nbdinfo "$(psk_uri alice mallory '')"
psk_args mallory
refused "qemu with another key" '' qemu-img info "${psk_args[@]}"
sed 's/^alice/bob/' "$tmp/alice/keys.psk" > "$tmp/mallory/keys.psk"
refused "one with the key and another name" '' nbdinfo "$(psk_uri bob mallory '')"
refused "one without TLS" 'TLS|not supported' nbdinfo "$uri"
admitted "the first one, after all of them" "$(psk_uri alice alice '')" "$live_sum"
stop_nbdkit

# ---- Addresses, owners, permissions, numbers

say "addresses"
serve_tcp --filter=ip -r file="$disk" allow=anyipv4 deny=all
admitted "a kind of address that is allowed" "nbd://127.0.0.1:$port" "$live_sum"
stop_nbdkit
serve_tcp --filter=ip -r file="$disk" allow=allunix,anyipv6 deny=all
refused "a kind of address that is not" '' nbdinfo "nbd://127.0.0.1:$port"
stop_nbdkit
# Debian 12's filter was built without the function that reads addresses.
if nbdkit -U - --filter=ip null allow=127.0.0.1 --run true 2> /dev/null; then
  serve_tcp --filter=ip -r file="$disk" allow=127.0.0.1 deny=all
  admitted "an address that is allowed" "nbd://127.0.0.1:$port" "$live_sum"
  stop_nbdkit
  serve_tcp --filter=ip -r file="$disk" allow=127.0.0.2,10.0.0.0/8 deny=all
  refused "an address that is not" '' nbdinfo "nbd://127.0.0.1:$port"
  stop_nbdkit
else
  say "this nbdkit's ip filter takes no addresses: they are not tried"
fi
listen=()
serve --filter=ip -r file="$disk" allow="uid:$(id -u)" deny=all
admitted "a user who is allowed" "$uri" "$live_sum"
stop_nbdkit
serve --filter=ip -r file="$disk" allow="uid:$(($(id -u) + 1))" deny=all
refused "a user who is not" '' nbdinfo "$uri"
stop_nbdkit

# as_nobody COMMAND...
as_nobody ()
{
  setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
}

chmod 711 "$tmp"
if [ "$(id -u)" -ne 0 ] || ! as_nobody test -x "$tmp"; then
  say "not root, or nobody cannot come here: permissions of a socket are not tried"
else
  before=$(umask)
  umask 022
  serve -r file="$disk"
  umask "$before"
  refused "a user who may not write to the socket" 'Permission denied' \
    as_nobody nbdinfo "$uri"
  chmod 777 "$sock"
  as_nobody nbdinfo "$uri" > /dev/null || fail "a user who may write to the socket"
  stop_nbdkit
fi

# One connection at most: the second is refused, and comes in when the first has gone.
say "numbers"
serve --filter=limit -r file="$disk" limit=1
mkfifo "$tmp/commands"
qemu-io -r -f raw "$uri" < "$tmp/commands" > "$tmp/io.log" 2>&1 &
first=$!
exec {commands}> "$tmp/commands"
echo 'read 0 512' >&"$commands"
wait_until grep -q 'read 512/512' "$tmp/io.log" || fail "the first connection"
refused "a second connection" '' nbdinfo "$uri"
exec {commands}>&-
wait "$first" || fail "the first connection has suffered"
wait_until nbdinfo "$uri" > /dev/null 2>&1 || fail "refused although the first has gone"
stop_nbdkit
say "passed"
