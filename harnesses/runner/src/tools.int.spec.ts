import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { MAX_WHOLE_BYTES, SHOWN_CHARS } from './output.ts';
import { type ToolAnswer, type ToolCall, Tools } from './tools.ts';

let folder: string;
let workspace: string;
let tools: Tools;
let calls = 0;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-tools-'));
  workspace = join(folder, 'workspace');
  mkdirSync(workspace);
  tools = new Tools({ workspace, home: folder, scratch: join(folder, '.holdfast'), alone: false });
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const answer = (tool: ToolCall['tool'], input: ToolCall['input'], more: Partial<ToolCall> = {}): Promise<ToolAnswer> =>
  tools.run({
    callId: `call-${process.pid}-${++calls}`,
    tool,
    input,
    timeoutMs: 10_000,
    env: { PATH: process.env.PATH ?? '', HOME: folder, COLOUR: 'teal' },
    signal: new AbortController().signal,
    ...more,
  });
const use = async (tool: ToolCall['tool'], input: ToolCall['input'], more: Partial<ToolCall> = {}): Promise<string> =>
  (await answer(tool, input, more)).result.text;
const bash = (command: string, more: Partial<ToolCall> = {}) => use('bash', { command }, more);
const running = (what: string): number =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(what);
      } catch {
        return false;
      }
    }).length;

/** Shells of this process. */
const waitingShells = (): number[] =>
  readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8')
    .split(' ')
    .filter((pid) => pid !== '' && readFileSync(`/proc/${pid}/cmdline`, 'latin1').startsWith('bash\0'))
    .map(Number);

describe('bash', () => {
  it('takes up directory, variables and functions where the last call left them', async () => {
    await bash(
      `mkdir d; cd d; plain=1; export OUT=2; list=(a 'b c'); text=$'two\nlines'; greet() { echo hi $plain; }; unset COLOUR`,
    );
    expect(
      await bash('echo "$plain $OUT ${list[1]} $text ${COLOUR-none} $PWD"; greet; bash -c \'echo "[$plain] $OUT"\''),
    ).toBe(`1 2 b c two\nlines none ${workspace}/d\nhi 1\n[] 2\n`);
    await bash('cd ..; export OUT=3; exit 7');
    expect(await bash('echo $OUT $PWD')).toBe(`3 ${workspace}\n`);
    await bash('set -e; plain=4; false; plain=5');
    expect(await bash('trap "echo bye" EXIT; plain=$((plain + 1)); echo $-')).toMatch(/^[^e]*\nbye\n$/);
    expect(await bash('echo $plain')).toBe('5\n');
    expect(await use('bash', { restart: true, command: 'echo "[$plain] $COLOUR $PWD"' })).toBe(
      `[] teal ${workspace}\n`,
    );
  });

  it('runs commands of any length, and says how they ended', async () => {
    expect(await bash(`echo x${'🌱'.repeat(100_000)} | wc -c`)).toBe('400002\n');
    expect(await bash(`x=${'x'.repeat(5_000_000)}; echo ${'$'}{#x}; unset x`)).toBe('5000000\n');
    expect(await bash('a\0b')).toMatch(/a text that is not empty/);
    expect(await bash('echo one; exit 3')).toBe('one\n\n[exit code 3]');
    expect(await bash('kill -9 $$')).toBe('\n[killed by SIGKILL]');
    expect(await bash('nosuchthing\nif')).toMatch(/line 1: nosuchthing|syntax error/);
    expect(await bash('cat; read x; echo "[$x]"')).toBe('[]\n');
  });

  it('finds the shell of the first command started, with nothing else about it', async () => {
    const env = { PATH: process.env.PATH ?? '', HOME: folder, COLOUR: 'teal' };
    const seen = 'echo $COLOUR $SECONDS $PWD $HOLDFAST_CALL; env | sort; ls -l /proc/self/fd | wc -l';
    const once = async (prepare: boolean) => {
      tools = new Tools({ workspace, home: folder, scratch: join(folder, '.holdfast'), alone: false });
      if (prepare) tools.prepare(env);
      await sleep(1_100);
      const waited = waitingShells().length;
      const { result } = await answer('bash', { command: seen, restart: true }, { callId: 'call-1', env });
      return { waited, text: result.text };
    };
    const [plain, ahead] = [await once(false), await once(true)];
    expect([plain.waited, ahead.waited]).toEqual([0, 1]);
    expect(ahead.text).toBe(plain.text);
    expect(waitingShells()).toEqual([]);
  });

  it('of another environment, or one that died, is not the one that was started ahead', async () => {
    tools.prepare({ PATH: process.env.PATH ?? '', HOME: folder, COLOUR: 'red' });
    expect(await bash('echo $COLOUR')).toBe('teal\n');
    tools = new Tools({ workspace, home: folder, scratch: join(folder, '.holdfast'), alone: false });
    tools.prepare({ PATH: process.env.PATH ?? '', HOME: folder, COLOUR: 'teal' });
    for (const pid of waitingShells()) process.kill(pid, 'SIGKILL');
    await sleep(50);
    expect(await bash('echo $COLOUR')).toBe('teal\n');
    expect(waitingShells()).toEqual([]);
  });

  it('that was started ahead is killed with all it started', async () => {
    const mark = `32.${process.pid}`;
    tools.prepare({ PATH: process.env.PATH ?? '', HOME: folder, COLOUR: 'teal' });
    expect(
      await bash(`set -m; sleep ${mark} & (sleep ${mark}; :) & setsid sleep ${mark} & wait`, { timeoutMs: 500 }),
    ).toMatch(/timed out after 500 ms/);
    await sleep(100);
    expect(running(`sleep\0${mark}`)).toBe(0);
  });

  it('ends with its command; what it left in the background goes on, also when it writes', async () => {
    const began = Date.now();
    expect(await bash('(for i in 1 2 3 4 5; do echo tick; echo t >> ticks; sleep 0.15; done) & echo back')).toMatch(
      /^back\n|^tick\nback\n/,
    );
    expect(Date.now() - began).toBeLessThan(700);
    for (const deadline = Date.now() + 5_000; Date.now() < deadline; await sleep(50))
      if (readFileSync(join(workspace, 'ticks'), 'utf8').length === 10) break;
    expect(readFileSync(join(workspace, 'ticks'), 'utf8')).toBe('t\n'.repeat(5));
  });

  it('is killed with all it started when it takes too long', async () => {
    const mark = `31.${process.pid}`;
    const text = await bash(
      `sleep ${mark} & setsid sleep ${mark} & (setsid env -i sleep ${mark} &) ; (env -i sleep ${mark} & wait)`,
      {
        timeoutMs: 500,
      },
    );
    expect(text).toMatch(/timed out after 500 ms/);
    await sleep(100);
    // Alone in a PID namespace it would also find the one that shed its mark and its parents.
    expect(running(`sleep\0${mark}`)).toBe(1);
    execFileSync('pkill', ['-KILL', '-f', `^sleep ${mark}$`]);
  });

  it('is killed when it is cancelled', async () => {
    const controller = new AbortController();
    setTimeout(() => controller.abort('Cancelled.'), 300);
    const { result } = await answer('bash', { command: 'echo begun; sleep 20' }, { signal: controller.signal });
    expect(result).toEqual({ outcome: 'cancelled', isError: true, text: expect.stringMatching(/^Cancelled\.\nbegun/) });
  });
});

describe('long output', () => {
  it('shows beginning and end, whatever the pieces, and keeps the whole', async () => {
    const { result, whole } = await answer('bash', {
      command: 'echo first; head -c 3000000 /dev/zero | tr "\\0" x; echo; echo last',
    });
    expect(result.text.length).toBeLessThan(SHOWN_CHARS + 500);
    expect(result.text).toMatch(/^first\nx+\n\[cut: \d+ characters; the whole output is in \S+]\nx+\nlast\n$/);
    const mark = /\n\[cut: (\d+) [^\]]+]\n/.exec(result.text);
    expect(Number(mark?.[1])).toBe(3_000_012 - result.text.length + (mark?.[0].length ?? 0));
    const path = /is in (\S+)]/.exec(result.text)?.[1] ?? '';
    expect(statSync(path).size).toBe(3_000_012);
    expect(readSync(whole ?? -1, Buffer.alloc(5), 0, 5, 0)).toBe(5);
  });

  it('is bounded on disk, and only the newest are kept', async () => {
    const { whole } = await answer('bash', { command: `head -c ${MAX_WHOLE_BYTES + 5_000_000} /dev/zero` });
    expect(whole).not.toBeNull();
    const outputs = join(folder, '.holdfast', 'outputs');
    expect(readdirSync(outputs).map((name) => statSync(join(outputs, name)).size)).toEqual([MAX_WHOLE_BYTES]);
    for (let i = 0; i < 20; i++) await bash('head -c 40000 /dev/zero');
    expect(readdirSync(outputs).length).toBe(16);
  });

  it('ends no runner where it cannot be kept, and writes through nothing that was planted', async () => {
    mkdirSync(join(folder, '.holdfast'));
    writeFileSync(join(folder, '.holdfast', 'outputs'), 'in the way');
    expect(await bash('head -c 100000 /dev/zero | tr "\\0" x')).toMatch(
      /^x+\n\[cut: \d+ characters; the whole could not be kept: E/,
    );
    rmSync(join(folder, '.holdfast', 'outputs'));
    writeFileSync(join(folder, 'victim'), 'untouched');
    const planted =
      'mkdir -p ~/.holdfast/outputs; ln -s ~/victim ~/.holdfast/outputs/$HOLDFAST_CALL.txt; head -c 100000 /dev/zero';
    expect(await bash(planted)).toMatch(/could not be kept: EEXIST/);
    expect(readFileSync(join(folder, 'victim'), 'utf8')).toBe('untouched');
  });
});

describe('read, write and edit', () => {
  it('read lines, all or a range, and say how to read on', async () => {
    writeFileSync(join(workspace, 'a.txt'), 'one\ntwo\nthree\n');
    expect(await use('read', { file_path: 'a.txt' })).toBe('     1\tone\n     2\ttwo\n     3\tthree');
    expect(await use('read', { file_path: 'a.txt', view_range: [2, -1] })).toBe('     2\ttwo\n     3\tthree');
    for (const range of [[0, 1], [4, 5], [3, 2], 'x', [1.5, 2]])
      expect(await answer('read', { file_path: 'a.txt', view_range: range })).toMatchObject({
        result: { isError: true },
      });
    writeFileSync(join(workspace, 'long.txt'), Array.from({ length: 20_000 }, (_, i) => `line ${i + 1}`).join('\n'));
    const shown = await use('read', { file_path: 'long.txt' });
    expect(shown.length).toBeLessThanOrEqual(SHOWN_CHARS);
    const next = Number(/the file has 20000 lines; read on with view_range \[(\d+), …]/.exec(shown)?.[1]);
    expect(shown).toContain(`${next - 1}\tline ${next - 1}\n`);
    expect(await use('read', { file_path: 'long.txt', view_range: [next, next] })).toBe(
      `${String(next).padStart(6)}\tline ${next}`,
    );
  });

  it('read regular files only: no pipe to wait for, no device without an end', async () => {
    execFileSync('mkfifo', [join(workspace, 'pipe')]);
    symlinkSync('/dev/zero', join(workspace, 'zero'));
    writeFileSync(join(workspace, 'binary'), Buffer.from([1, 0, 2]));
    for (const [path, rule] of [
      ['pipe', /not a regular file/],
      ['zero', /not a regular file/],
      ['.', /is a folder/],
      ['none', /There is no file/],
      ['binary', /is a binary file/],
      ['a\0b', /must be a text/],
      ['', /must be a text/],
    ] as const)
      expect([path, await use('read', { file_path: path })]).toEqual([path, expect.stringMatching(rule)]);
    expect(await use('edit', { file_path: 'pipe', old_string: 'a', new_string: 'b' })).toMatch(/not a regular file/);
  });

  it('write whole files through links, keep their mode and leave nothing beside them', async () => {
    expect(await use('write', { file_path: 'deep/er/a.txt', content: 'grün' })).toBe(
      `Wrote 5 bytes to ${workspace}/deep/er/a.txt.`,
    );
    chmodSync(join(workspace, 'deep/er/a.txt'), 0o640);
    symlinkSync('deep/er/a.txt', join(workspace, 'link'));
    await use('write', { file_path: 'link', content: 'two' });
    expect(readFileSync(join(workspace, 'deep/er/a.txt'), 'utf8')).toBe('two');
    expect(statSync(join(workspace, 'deep/er/a.txt')).mode & 0o777).toBe(0o640);
    expect(await use('write', { file_path: 'deep', content: 'x' })).toBe(`That is a folder: ${workspace}/deep.`);
    expect(await use('write', { file_path: 'link/x', content: 'x' })).toMatch(
      /^(A file is in the way|A part of it is not a folder)/,
    );
    expect(readdirSync(workspace)).toEqual(['deep', 'link']);
  });

  it('edit what is there exactly once, or everywhere when asked, and no bytes but those', async () => {
    writeFileSync(join(workspace, 'a.txt'), '\uFEFFa b a\r\n$& a');
    const edit = (old_string: string, new_string: string, rest = {}) =>
      use('edit', { file_path: 'a.txt', old_string, new_string, ...rest });
    expect(await edit('zz', 'y')).toMatch(/does not occur/);
    expect(await edit('a', 'y')).toMatch(/occurs 3 times/);
    expect(await edit('b', '$&')).toMatch(/Replaced 1 occurrence in/);
    expect(await edit('a', 'A', { replace_all: true })).toMatch(/Replaced 3 occurrences in/);
    expect(readFileSync(join(workspace, 'a.txt'), 'utf8')).toBe('\uFEFFA $& A\r\n$& A');
    writeFileSync(join(workspace, 'latin'), Buffer.from([0x61, 0xe9, 0x62]));
    expect(await use('edit', { file_path: 'latin', old_string: 'a', new_string: 'c' })).toMatch(/not UTF-8/);
    expect([...readFileSync(join(workspace, 'latin'))]).toEqual([0x61, 0xe9, 0x62]);
  });
});

describe('measuring', () => {
  it('counts workspace and home once, also what vanishes meanwhile, and asked twice it counts once', async () => {
    const before = (await tools.measure()) ?? 0;
    writeFileSync(join(workspace, 'a'), Buffer.alloc(1_000_000));
    writeFileSync(join(folder, 'b'), Buffer.alloc(500_000));
    const [one, other] = [tools.measure(), tools.measure()];
    expect(one).toBe(other);
    expect(((await one) ?? 0) - before).toBeGreaterThanOrEqual(1_500_000);
    expect(((await one) ?? 0) - before).toBeLessThan(1_600_000);
    rmSync(workspace, { recursive: true });
    expect(await tools.measure()).toBeLessThan(((await one) ?? 0) - 900_000);
  });

  it('says so when it was ended before it was done', async () => {
    const large = new Tools({ workspace, home: '/usr', scratch: join(folder, '.holdfast'), alone: false });
    const measured = large.measure();
    for (const deadline = Date.now() + 2_000; Date.now() < deadline && running(`\0${workspace}\0/usr`) === 0; )
      await sleep(1);
    execFileSync('pkill', ['-KILL', '-f', `^du .* ${workspace} /usr$`]);
    expect(await measured).toBeNull();
  });
});

describe('glob and grep', () => {
  it('find, newest first, or say that there is nothing', async () => {
    await bash(
      'mkdir -p src/x node_modules; touch -d "1 hour ago" src/old.ts; touch src/x/new.ts node_modules/skip.ts; echo "needle é" > src/x/new.ts',
    );
    expect(await use('glob', { pattern: '**/*.ts' })).toBe(`${workspace}/src/x/new.ts\n${workspace}/src/old.ts`);
    expect(await use('glob', { pattern: '*.py' })).toBe('No files match.');
    expect(await use('glob', { pattern: '*', path: 'src/old.ts' })).toMatch(/is not a folder/);
    expect(await use('grep', { pattern: 'need(le)' })).toBe(`${workspace}/src/x/new.ts:1:needle é\n`);
    expect(await use('grep', { pattern: 'nothing' })).toBe('No matches.');
    expect(await answer('grep', { pattern: 'open[' })).toMatchObject({ result: { isError: true } });
    expect(await use('grep', { pattern: 'x', path: 'none' })).toMatch(/There is nothing at/);
  });

  it('stop in time', async () => {
    expect(await answer('glob', { pattern: '/**/no-such-name-*' }, { timeoutMs: 300 })).toMatchObject({
      result: { isError: true, text: 'Stopped after 300 ms; look in a narrower folder.' },
    });
  });
});
