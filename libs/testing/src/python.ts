import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { cacheDir } from '../../../bin/src/nats-server.ts';
import { installDebianPackages } from './debian.ts';

const run = promisify(execFile);
const REQUIREMENTS = fileURLToPath(new URL('../python/', import.meta.url));
const MINIMUM = 10;
const INSTALL_MS = 900_000;

/** Files of `libs/testing/python`, without `.txt`. */
export type PythonEnvironment = 'anthropic-1' | 'anthropic-2' | 'litellm';

/**
 * The interpreter of a virtual environment with exactly the packages of `libs/testing/python/<name>.txt`. It is made
 * once per user, Python and content of that file, in the cache folder, and is then shared by all checkouts.
 * Run modules with it (`-m`, `-c`); the scripts in its `bin` do not work.
 *
 * @throws Error that says what is missing, where there is no Python >= 3.10 with venv and none may be installed
 */
export async function pythonEnvironment(name: PythonEnvironment): Promise<string> {
  const { python, version } = await findPython();
  const requirements = join(REQUIREMENTS, `${name}.txt`);
  const key = createHash('sha256')
    .update(python)
    .update(version)
    .update(readFileSync(requirements))
    .digest('hex')
    .slice(0, 16);
  const folder = join(cacheDir(), `python-${name}-${key}`);
  const interpreter = join(folder, 'bin', 'python');
  // The folder gets its name when it is whole.
  if (existsSync(folder)) return interpreter;
  say(`installing ${name} from PyPI into ${folder} (once, up to two minutes)`);
  await mkdir(dirname(folder), { recursive: true });
  await removeLeftovers(folder);
  const unfinished = `${folder}.${process.pid}`;
  await createVenv(python, unfinished);
  try {
    const pip = ['-m', 'pip', 'install', '--quiet', '--no-input', '--disable-pip-version-check', '--no-deps'];
    await run(join(unfinished, 'bin', 'python'), [...pip, '-r', requirements], {
      timeout: INSTALL_MS,
      maxBuffer: 1 << 24,
    });
    await rename(unfinished, folder);
  } catch (error) {
    await rm(unfinished, { recursive: true, force: true });
    // Another run may have made it meanwhile.
    if (!existsSync(folder)) throw new Error(`${name} could not be installed from PyPI: ${said(error)}`);
  }
  say(`installed ${name}`);
  return interpreter;
}

async function findPython(): Promise<{ python: string; version: string }> {
  const found =
    (await pythonOnPath()) ?? ((await installDebianPackages('python3', 'python3-venv')) ? await pythonOnPath() : null);
  if (found === null) throw new Error(`Python >= 3.${MINIMUM} is needed as python3 on PATH.`);
  return found;
}

async function pythonOnPath(): Promise<{ python: string; version: string } | null> {
  const ask = 'import sys; print(sys.executable); print("%d.%d" % sys.version_info[:2])';
  try {
    const { stdout } = await run('python3', ['-c', ask], { timeout: 10_000 });
    const [python = '', version = ''] = stdout.trim().split('\n');
    const [major, minor] = version.split('.').map(Number);
    return major === 3 && (minor ?? 0) >= MINIMUM ? { python, version } : null;
  } catch {
    return null;
  }
}

/** Debian leaves the part of venv that brings pip to a package of its own. */
async function createVenv(python: string, folder: string): Promise<void> {
  const create = () => run(python, ['-m', 'venv', '--clear', folder], { timeout: 120_000 });
  try {
    await create().catch(async (error: unknown) => {
      if (!(await installDebianPackages('python3-venv'))) throw error;
      await create();
    });
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw new Error(`${python} makes no virtual environment; install its venv (python3-venv). ${said(error)}`);
  }
}

/** What runs left that were killed while they installed. */
async function removeLeftovers(folder: string): Promise<void> {
  for (const entry of readdirSync(dirname(folder))) {
    const pid = entry.startsWith(`${basename(folder)}.`) ? Number(entry.slice(basename(folder).length + 1)) : 0;
    if (pid > 0 && !isAlive(pid)) await rm(join(dirname(folder), entry), { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** The end of what a failed command printed. */
function said(error: unknown): string {
  const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string };
  const printed = `${stdout}\n${stderr}`.trim();
  return (printed === '' ? String(error) : printed).slice(-1_500);
}

/** Past jest, which holds a spec's output back until it ends. */
function say(line: string): void {
  process.stderr.write(`   ${line}\n`);
}
