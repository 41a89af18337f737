# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The commands that a document tells its reader to type, found in it and compared with
# what they do.
#
#   examples.pl DOCUMENT               print them, as the bash script that examples-run.sh
#                                      understands
#   examples.pl --compare DIRECTORY    compare DIRECTORY/N.expected, what a document says
#                                      that a command prints, with DIRECTORY/N.output
#
# What counts as a command has to be told from what only looks like one: the output of
# commands, files, C, and the form of a command with its options.  In each kind of
# document there is a rule that leaves nothing out by itself:
#
# In README.md every code block is one of commands, a line each, unless it is fenced and
# names a language other than sh.
#
# In a page of the manual
# - a block that has lines with "$ " in front is a dialogue: what follows the "$ " is
#   a command, and the other lines are what it prints (a line "..." stands for any);
# - every other block is one of commands, a line each; but not in a SYNOPSIS, nor in
#   pages that show other things everywhere (ploop-img's subcommands each have
#   their synopsis, libploop-core has C): there only below a heading EXAMPLE or
#   EXAMPLES; nor where the source has, in front of the block,
#
#       =for example file NAME         this is a file; it is made, with that name
#       =for example text              nobody types this
#
# A fenced block of README.md has the same, as <!-- example file NAME -->.
#
# A command ends with its line if bash can read it so far; "\" at the end, a quotation
# or a loop that is open make it go on.  A line that is only a comment is none.

use strict;
use warnings;

# Pages whose blocks are commands only where they say so.
my %shows_other_things = ('ploop-img' => 1, 'libploop-core' => 1);

sub quoted
{
  my ($text) = @_;
  $text =~ s/'/'\\''/g;
  return "'$text'";
}

# Paragraphs of a page: [kind, text], where kind is verbatim, command or text.
# Verbatim ones that follow each other are one.
sub paragraphs_of_pod
{
  my ($text) = @_;
  my @paragraphs;
  for my $paragraph (split /\n(?:[ \t]*\n)+/, $text) {
    my $kind = $paragraph =~ /^=/ ? 'command'
             : $paragraph =~ /^[ \t]/ ? 'verbatim' : 'text';
    $paragraph =~ s/^ //mg if $kind eq 'verbatim';
    if ($kind eq 'verbatim' && @paragraphs && $paragraphs[-1][0] eq $kind) {
      $paragraphs[-1][1] .= "\n\n$paragraph";
    } else {
      push @paragraphs, [$kind, $paragraph];
    }
  }
  return @paragraphs;
}

# Blocks of a page.
sub blocks_of_pod
{
  my ($name, $text) = @_;
  my (@blocks, $head1, $heading, $intro, $mark);
  $head1 = $heading = $intro = $mark = '';
  for (paragraphs_of_pod ($text)) {
    my ($kind, $paragraph) = @$_;
    if ($kind eq 'verbatim') {
      my $is_told = $mark ne '' || $paragraph =~ /^\$ /m;
      my $is_there = $head1 ne 'SYNOPSIS'
        && (!$shows_other_things{$name} || $head1 =~ /^EXAMPLES?$/);
      push @blocks, { heading => $heading, intro => $intro, mark => $mark,
                      text => $paragraph }
        if $is_told || $is_there;
      $mark = '';
    } elsif ($paragraph =~ /^=for example (.*)/) {
      $mark = $1;
    } elsif ($paragraph =~ /^=head([1-4]) (.*)/) {
      $head1 = $2 if $1 == 1;
      ($heading, $intro) = ($2, '');
    } elsif ($kind eq 'text') {
      $intro = $paragraph;
    }
  }
  return @blocks;
}

# Blocks of a Markdown text, indented by four or fenced.
sub blocks_of_markdown
{
  my ($text) = @_;
  my (@blocks, $block, $fence);
  my ($heading, $intro, $mark) = ('', '', '');
  my $begin = sub {
    $block = { heading => $heading, intro => $intro, mark => $mark, text => '' };
    push @blocks, $block;
    $mark = '';
  };
  for my $line (split /\n/, $text) {
    if (defined $fence) {
      if ($line eq $fence) { undef $fence; undef $block; }
      elsif ($block) { $block->{text} .= "$line\n"; }
    } elsif ($line =~ /^(```|~~~)(\w*)$/) {
      $fence = $1;
      $begin->() if $mark ne '' || $2 =~ /^(sh|bash|console)?$/;
    } elsif ($line =~ /^    (.*)/) {
      $begin->() unless $block;
      $block->{text} .= "$1\n";
    } elsif ($line eq '') {
      $block->{text} .= "\n" if $block;
    } else {
      undef $block;
      ($heading, $intro) = ($1, '') if $line =~ /^#+ (.*)/;
      $mark = $1 if $line =~ /^<!-- example (.*) -->/;
      $intro = $line if $line !~ /^#|^<!--/;
    }
  }
  return @blocks;
}

# True if bash reads TEXT to its end as something whole.
sub is_whole
{
  my ($text) = @_;
  return 0 if $text =~ /\\\n\z/;
  open my $bash, '-|', 'bash', '-c', 'bash -n -c "$1" 2>&1', '-', $text
    or die "bash: $!\n";
  my @complaints = <$bash>;
  close $bash;
  return !@complaints;
}

# Commands of a block, each [text, what it prints or undef].
sub commands_of
{
  my ($block) = @_;
  my @commands;
  my $is_dialogue = $block->{text} =~ /^\$ /m;
  my $open = '';
  for my $line (split /\n/, $block->{text}) {
    if ($open eq '') {
      if ($is_dialogue && $line !~ s/^\$ //) {
        $commands[-1][1] .= "$line\n";
        next;
      }
      next if $line =~ /^\s*(#|$)/;
    }
    $open .= "$line\n";
    next unless is_whole ($open);
    push @commands, [$open =~ s/\n\z//r, $is_dialogue ? '' : undef];
    $open = '';
  }
  die "$block->{heading}: this is no whole command:\n$open" if $open ne '';
  return @commands;
}

sub print_block
{
  my ($block) = @_;
  print 'doc_block ', quoted ($block->{heading}), ' ', quoted ($block->{intro}), "\n";
  if ($block->{mark} =~ /^file (\S+)$/) {
    print 'doc_file ', quoted ($1), ' ', quoted ($block->{text} =~ s/\n*\z/\n/r), "\n";
  } elsif ($block->{mark} eq '') {
    for (commands_of ($block)) {
      my ($command, $output) = @$_;
      $output =~ s/\n+\z/\n/ if defined $output;
      print 'doc_command ', quoted ($command),
        defined $output && $output =~ /\S/ ? ' ' . quoted ($output) : '', "\n";
    }
  } elsif ($block->{mark} ne 'text') {
    die "$block->{heading}: '=for example $block->{mark}' means nothing\n";
  }
  print "doc_end\n";
}

sub contents_of
{
  my ($file) = @_;
  open my $in, '<:encoding(UTF-8)', $file or die "$file: $!\n";
  local $/;
  return <$in> // '';
}

# What is left of what a command prints when all that differs from one run to the
# next, or with the size of a disk, is alike.
sub shape_of
{
  my ($text) = @_;
  for ($text) {
    s{/reader/block-\d+/}{/vz/}g;
    s/\{?\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b\}?/GUID/g;
    s/\b0x[0-9a-f]+\b|\b\d+(\.\d+)?\b/N/g;
    s/\bN ([KMGT]i)?B\b/N bytes/g;
    s/[ \t]+/ /g;
    s/ $//mg;
  }
  return $text;
}

sub compare
{
  my ($directory) = @_;
  my ($nr_compared, $nr_differences) = (0, 0);
  for my $expected (sort glob "$directory/*.expected") {
    my $output = contents_of ($expected =~ s/expected$/output/r);
    my $pattern = quotemeta shape_of (contents_of ($expected));
    $pattern =~ s/(?<!\S)(\\ )*\\\.\\\.\\\.\\\n/(?:.*\\n)*/g;
    $nr_compared++;
    next if shape_of ($output) =~ /\A$pattern\z/;
    $nr_differences++;
    print contents_of ($expected =~ s/expected$/command/r), "\ndoes not print\n",
      contents_of ($expected), "but\n$output\n";
  }
  print "$nr_compared outputs compared, $nr_differences differ\n";
  return $nr_differences == 0;
}

binmode STDOUT, ':encoding(UTF-8)';
if (@ARGV == 2 && $ARGV[0] eq '--compare') {
  exit !compare ($ARGV[1]);
}
@ARGV == 1 or die "usage: examples.pl DOCUMENT | --compare DIRECTORY\n";
my $text = contents_of ($ARGV[0]);
if ($ARGV[0] =~ m{([^/]*)\.pod$}) {
  print_block ($_) for blocks_of_pod ($1, $text);
} else {
  print_block ($_) for blocks_of_markdown ($text);
}
