import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { glob, mkdir, open, readFile, rename, stat, writeFile } from 'node:fs/promises';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import type { RunnerOutcome, SandboxTool } from '@holdfast/contracts';
import { Output } from './output.ts';

export interface ToolPlaces {
  readonly workspace: string;
  readonly home: string;
  /** Whole outputs, and the shell's state between calls. */
  readonly scratch: string;
}

export interface ToolCall {
  readonly callId: string;
  readonly tool: SandboxTool;
  readonly input: Readonly<Record<string, unknown>>;
  readonly timeoutMs: number;
  readonly env: Readonly<Record<string, string>>;
  readonly signal: AbortSignal;
}
export interface ToolAnswer {
  readonly result: RunnerOutcome;
  readonly wholePath: string | null;
}

const MAX_FILE_BYTES = 64 * 1024 * 1024;
const MAX_MATCHES = 10_000;

class ToolFault extends Error {}

/** The built-in tools. A fault of the call is an error result that says what to do; nothing throws for bad input. */
export class Tools {
  readonly #places: ToolPlaces;

  constructor(places: ToolPlaces) {
    this.#places = places;
  }

  async run(call: ToolCall): Promise<ToolAnswer> {
    const output = new Output(join(this.#places.scratch, 'outputs'), call.callId);
    let isError = false;
    try {
      if (call.tool === 'bash') isError = await this.#bash(call, output);
      else if (call.tool === 'grep') isError = await this.#grep(call, output);
      else output.addText(await this.#file(call));
    } catch (error) {
      isError = true;
      output.addText(error instanceof ToolFault ? error.message : describe(error));
    }
    const { text, wholePath } = output.end();
    if (call.signal.aborted) {
      return {
        result: { outcome: 'cancelled', isError: true, text: `${String(call.signal.reason)}\n${text}`.trim() },
        wholePath,
      };
    }
    return { result: { outcome: 'completed', isError, text }, wholePath };
  }

  #file(call: ToolCall): Promise<string> {
    switch (call.tool) {
      case 'read':
        return this.#read(call.input);
      case 'write':
        return this.#write(call.input);
      case 'edit':
        return this.#edit(call.input);
      default:
        return this.#glob(call.input);
    }
  }

  /** Runs a command in a fresh shell that takes up directory and exported variables where the last one left them. */
  async #bash(call: ToolCall, output: Output): Promise<boolean> {
    const state = join(this.#places.scratch, 'shell-state');
    if (call.input['restart'] === true) rmSync(state, { force: true });
    const { command } = call.input;
    if (command === undefined && call.input['restart'] === true) {
      output.addText('The shell was restarted.');
      return false;
    }
    if (typeof command !== 'string' || command === '') throw new ToolFault('bash needs {"command": "…"}.');
    mkdirSync(this.#places.scratch, { recursive: true });
    const script = `
hf_state=$HF_STATE hf_command=$HF_COMMAND
unset HF_STATE HF_COMMAND
if [ -r "$hf_state" ]; then . "$hf_state" 2>/dev/null; fi
hf_save() {
  hf_code=$?
  trap - EXIT
  { printf 'cd %q 2>/dev/null\\n' "$PWD"; (unset HOLDFAST_CALL; export -p); } > "$hf_state.$$" 2>/dev/null && mv -f "$hf_state.$$" "$hf_state"
  exit $hf_code
}
trap hf_save EXIT
eval "$hf_command"`;
    const child = spawn('/bin/bash', ['-c', script], {
      cwd: this.#places.workspace,
      env: { ...call.env, HOLDFAST_CALL: call.callId, HF_STATE: state, HF_COMMAND: command },
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    const { code, timedOut } = await this.#supervise(child, call, output);
    if (timedOut) output.addText(`\n[timed out after ${call.timeoutMs} ms; the command was killed]`);
    else if (code !== 0) output.addText(`\n[exit code ${code}]`);
    return timedOut || code !== 0;
  }

  async #grep(call: ToolCall, output: Output): Promise<boolean> {
    const pattern = stringOf(call.input, 'pattern');
    const path = this.#resolve(typeof call.input['path'] === 'string' ? call.input['path'] : '.');
    if (!existsSync(path)) throw new ToolFault(`There is nothing at ${path}.`);
    const child = spawn(
      'grep',
      ['-rnIE', '--exclude-dir=.git', '--exclude-dir=node_modules', '-e', pattern, '--', path],
      {
        cwd: this.#places.workspace,
        env: { ...call.env, HOLDFAST_CALL: call.callId },
        stdio: ['ignore', 'pipe', 'pipe'],
        detached: true,
      },
    );
    const { code, timedOut } = await this.#supervise(child, call, output);
    if (timedOut) output.addText(`\n[timed out after ${call.timeoutMs} ms]`);
    if (code === 1) output.addText('No matches.');
    return timedOut || (code !== 0 && code !== 1);
  }

  /** Collects output until the process ends; on a timeout or an abort its whole tree is killed. */
  #supervise(child: ChildProcess, call: ToolCall, output: Output): Promise<{ code: number | null; timedOut: boolean }> {
    return new Promise((done, reject) => {
      let timedOut = false;
      let exited: number | null | undefined;
      const kill = (): void => killTree(child.pid, call.callId);
      const timer = setTimeout(() => {
        timedOut = true;
        kill();
      }, call.timeoutMs);
      call.signal.addEventListener('abort', kill, { once: true });
      if (call.signal.aborted) kill();
      const finish = (): void => {
        clearTimeout(timer);
        call.signal.removeEventListener('abort', kill);
        done({ code: exited ?? null, timedOut });
      };
      child.stdout?.on('data', (bytes: Buffer) => output.add(bytes));
      child.stderr?.on('data', (bytes: Buffer) => output.add(bytes));
      child.once('error', reject);
      child.once('close', finish);
      child.once('exit', (code) => {
        exited = code;
        // A background process may hold the pipes open for ever; the command itself is over.
        setTimeout(() => {
          child.stdout?.destroy();
          child.stderr?.destroy();
        }, 200);
      });
    });
  }

  async #read(input: ToolCall['input']): Promise<string> {
    const path = this.#resolve(stringOf(input, 'file_path'));
    const facts = await stat(path);
    if (facts.isDirectory()) throw new ToolFault(`${path} is a folder; list it with glob or bash.`);
    if (facts.size > MAX_FILE_BYTES)
      throw new ToolFault(`${path} has ${facts.size} bytes; read parts of it with bash.`);
    const bytes = await readFile(path);
    if (bytes.subarray(0, 8_192).includes(0)) throw new ToolFault(`${path} is a binary file.`);
    const lines = new TextDecoder().decode(bytes).split('\n');
    if (lines.at(-1) === '') lines.pop();
    const range = input['view_range'];
    let [first, last] = [1, lines.length];
    if (range !== undefined) {
      if (!Array.isArray(range) || range.length !== 2 || !range.every(Number.isInteger))
        throw new ToolFault('view_range must be [first, last].');
      [first, last] = range as [number, number];
      if (last === -1) last = lines.length;
      if (first < 1 || first > Math.max(1, lines.length) || last < first)
        throw new ToolFault(`view_range must lie within 1 and ${lines.length}.`);
    }
    if (lines.length === 0) return '(the file is empty)';
    return lines
      .slice(first - 1, last)
      .map((line, i) => `${String(first + i).padStart(6)}\t${line}`)
      .join('\n');
  }

  async #write(input: ToolCall['input']): Promise<string> {
    const path = this.#resolve(stringOf(input, 'file_path'));
    const content = input['content'];
    if (typeof content !== 'string') throw new ToolFault('write needs {"file_path": "…", "content": "…"}.');
    await mkdir(dirname(path), { recursive: true });
    await replaceFile(path, content);
    return `Wrote ${Buffer.byteLength(content)} bytes to ${path}.`;
  }

  async #edit(input: ToolCall['input']): Promise<string> {
    const path = this.#resolve(stringOf(input, 'file_path'));
    const old = stringOf(input, 'old_string');
    const fresh = input['new_string'];
    if (typeof fresh !== 'string') throw new ToolFault('edit needs new_string.');
    const content = await readFile(path, 'utf8');
    const count = content.split(old).length - 1;
    if (count === 0) throw new ToolFault(`old_string does not occur in ${path}.`);
    if (count > 1 && input['replace_all'] !== true)
      throw new ToolFault(`old_string occurs ${count} times in ${path}; give more of it, or set replace_all.`);
    await replaceFile(path, content.split(old).join(fresh));
    return `Replaced ${count} occurrence${count === 1 ? '' : 's'} in ${path}.`;
  }

  async #glob(input: ToolCall['input']): Promise<string> {
    const folder = this.#resolve(typeof input['path'] === 'string' ? input['path'] : '.');
    const found: { path: string; changedMs: number }[] = [];
    for await (const match of glob(stringOf(input, 'pattern'), {
      cwd: folder,
      exclude: (name) => name === 'node_modules' || name === '.git',
    })) {
      const path = resolve(folder, match);
      const facts = await stat(path).catch(() => null);
      if (facts?.isFile() === true) found.push({ path, changedMs: facts.mtimeMs });
      if (found.length >= MAX_MATCHES) break;
    }
    if (found.length === 0) return 'No files match.';
    return found
      .sort((a, b) => b.changedMs - a.changedMs)
      .map(({ path }) => path)
      .join('\n');
  }

  #resolve(path: string): string {
    if (path.startsWith('~/')) return join(this.#places.home, path.slice(2));
    return isAbsolute(path) ? path : resolve(this.#places.workspace, path);
  }
}

function stringOf(input: ToolCall['input'], name: string): string {
  const value = input[name];
  if (typeof value !== 'string' || value === '' || value.includes('\0'))
    throw new ToolFault(`${name} must be a text that is not empty.`);
  return value;
}

function describe(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  const path = error instanceof Error && 'path' in error ? ` ${String(error.path)}` : '';
  const words: Record<string, string> = {
    ENOENT: 'There is no file',
    EACCES: 'No permission for',
    EISDIR: 'That is a folder:',
    ENOSPC: 'No space left for',
    EROFS: 'That place is read-only:',
  };
  return words[code] === undefined
    ? `Failed: ${error instanceof Error ? error.message : String(error)}`
    : `${words[code]}${path}.`;
}

/** Written beside and renamed, so that a crash leaves the old content or the new, never half of it. */
async function replaceFile(path: string, content: string): Promise<void> {
  const mode = await stat(path).then(
    (facts) => facts.mode & 0o777,
    () => 0o666 & ~process.umask(),
  );
  const fresh = `${path}.holdfast-${process.pid}-${Math.random().toString(36).slice(2)}`;
  await writeFile(fresh, content, { mode, flag: 'wx' });
  const file = await open(fresh, 'r');
  await file.sync();
  await file.close();
  await rename(fresh, path);
}

/** Kills a call's process group, and whatever else carries the call's id in its environment. */
export function killTree(groupPid: number | undefined, callId: string): void {
  const kill = (pid: number): void => {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // Gone already.
    }
  };
  if (groupPid !== undefined) kill(-groupPid);
  const mark = `HOLDFAST_CALL=${callId}`;
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
    try {
      if (readFileSync(`/proc/${name}/environ`, 'latin1').split('\0').includes(mark)) kill(Number(name));
    } catch {
      // Ended meanwhile, or not ours to read.
    }
  }
}
