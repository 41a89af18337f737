#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# examples.pl finds in documents what it says that it finds, and nothing else; what is
# not as printed is told.

set -euo pipefail
# shellcheck source=tests/functions.sh
. "$abs_top_srcdir/tests/functions.sh"

requires perl

# expect_found FILE, on standard input what examples.pl must find in it.
expect_found ()
{
  cat > "$tmp/expected"
  perl "$abs_srcdir/examples.pl" "$1" > "$tmp/found" || fail "examples.pl $1"
  diff -u "$tmp/expected" "$tmp/found" || fail "found in $1"
}

cat > "$tmp/README.md" <<'MD'
# Title

Text with `a command` in it.

    first | second     # with a comment

    # nothing but one
    a long \
      command

## Heading

- a point
  which goes on

What comes before:

```sh
for i in 1 2; do
  echo "it's $i"
done
```

```xml
<no command/>
```

<!-- example text -->
```
no command
```

<!-- example file a/b.conf -->
```ini
[Unit]
```
MD
expect_found "$tmp/README.md" <<'FOUND'
doc_block 'Title' 'Text with `a command` in it.'
doc_command 'first | second     # with a comment'
doc_command 'a long \
  command'
doc_end
doc_block 'Heading' 'What comes before:'
doc_command 'for i in 1 2; do
  echo "it'\''s $i"
done'
doc_end
doc_block 'Heading' 'What comes before:'
doc_end
doc_block 'Heading' 'What comes before:'
doc_file 'a/b.conf' '[Unit]
'
doc_end
FOUND

pod ()
{
  cat <<'POD'
=head1 SYNOPSIS

 command [OPTION]

=head1 OPTIONS

Where it shows something:

 command --option

=for example text

 not typed

A dialogue:

 $ command one \
     two
 it says so

 in two paragraphs
 $ other
POD
}
pod > "$tmp/page.pod"
expect_found "$tmp/page.pod" <<'FOUND'
doc_block 'OPTIONS' 'Where it shows something:'
doc_command 'command --option'
doc_end
doc_block 'OPTIONS' 'Where it shows something:'
doc_end
doc_block 'OPTIONS' 'A dialogue:'
doc_command 'command one \
    two' 'it says so

in two paragraphs
'
doc_command 'other'
doc_end
FOUND

# Pages that show other things outside their examples.
pod > "$tmp/ploop-img.pod"
printf '\n=head1 EXAMPLES\n\n command\n' >> "$tmp/ploop-img.pod"
perl "$abs_srcdir/examples.pl" "$tmp/ploop-img.pod" > "$tmp/found"
[ "$(grep -c '^doc_command' "$tmp/found")" -eq 3 ] ||
  fail "not three commands: $(cat "$tmp/found")"

# What nobody can type is told, not left out.
printf '\n=head1 MORE\n\n echo "open\n' >> "$tmp/page.pod"
! perl "$abs_srcdir/examples.pl" "$tmp/page.pod" > "$tmp/found" 2>&1 ||
  fail "a command without an end was taken for one"

# expect_like YES|NO EXPECTED OUTPUT
expect_like ()
{
  local like=YES
  rm -rf "$tmp/outputs"
  mkdir "$tmp/outputs"
  printf '%b' "$2" > "$tmp/outputs/1.expected"
  printf '%b' "$3" > "$tmp/outputs/1.output"
  echo command > "$tmp/outputs/1.command"
  perl "$abs_srcdir/examples.pl" --compare "$tmp/outputs" > "$tmp/log" || like=NO
  [ "$like" = "$1" ] || { cat "$tmp/log"; fail "alike: $like, must be $1"; }
}
expect_like YES 'made 10 GiB (10737418240 bytes)\n' 'made 16 MiB (16777216 bytes)\n'
expect_like YES '{00000001-1111-2222-3333-444444444444}  2026-11-22\n' \
                '{5fbaabe3-6958-40ff-92a7-860e329aab41} 2027-01-01\n'
expect_like YES 'one\n  ...\nlast 1\n' 'one\ntwo\nthree\nlast 2\n'
expect_like NO  'made 10 GiB\n' 'created 10 GiB\n'
expect_like NO  'one\ntwo\n' 'one\n'
expect_like NO  'one\n' 'one\ntwo\n'
expect_like NO  'one\n' ''
say "passed"
