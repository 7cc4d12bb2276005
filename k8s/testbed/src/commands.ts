import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

const execute = promisify(execFile);

/** For the bed's tools: `sbin` is not on every user's PATH, nor is Go's folder. */
const TOOL_PATH = `${process.env.PATH ?? ''}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin`;

/** Runs a command to its end. @returns its output @throws Error with what it said when it fails */
export async function run(
  command: string,
  args: readonly string[],
  options: { readonly cwd?: string; readonly env?: Readonly<Record<string, string>> } = {},
): Promise<string> {
  try {
    const { stdout } = await execute(command, args, {
      cwd: options.cwd ?? '/',
      env: { ...process.env, PATH: TOOL_PATH, ...options.env },
      maxBuffer: 1 << 28,
    });
    return stdout;
  } catch (error) {
    const { stderr = '' } = error as { stderr?: string };
    const said = stderr.trim().split('\n').slice(-15).join('\n');
    throw new Error(`${[command, ...args].join(' ').slice(0, 200)}: ${said === '' ? String(error) : said}`);
  }
}

export async function succeeds(command: string, ...args: string[]): Promise<boolean> {
  try {
    await run(command, args);
    return true;
  } catch {
    return false;
  }
}

/** Asks every `everyMs` until the answer is yes. @throws Error with the last reason after `timeoutMs` */
export async function until(
  what: string,
  isSo: () => Promise<boolean> | boolean,
  { timeoutMs = 90_000, everyMs = 100 } = {},
): Promise<void> {
  let reason = '';
  for (const deadline = Date.now() + timeoutMs; ; await sleep(everyMs)) {
    try {
      if (await isSo()) return;
    } catch (error) {
      if (error instanceof Hopeless) throw error;
      reason = `: ${error instanceof Error ? error.message : String(error)}`;
    }
    if (Date.now() > deadline) throw new Error(`${what} is not so after ${timeoutMs / 1000} s${reason}`);
  }
}

/** Ends an {@link until} at once: waiting longer cannot help. */
export class Hopeless extends Error {}

/** By a file that each brings. */
const DEBIAN_PACKAGES: Readonly<Record<string, string>> = {
  containerd: '/usr/bin/containerd',
  runc: '/usr/sbin/runc',
  'containernetworking-plugins': '/usr/lib/cni/bridge',
  debootstrap: '/usr/sbin/debootstrap',
  iproute2: '/usr/sbin/ip',
  iptables: '/usr/sbin/iptables',
  openssl: '/usr/bin/openssl',
  mount: '/usr/bin/mount',
};

/** Makes sure of the distribution's programs that the bed runs. @throws Error that says what to install */
export async function ensurePackages(say: (line: string) => void): Promise<void> {
  const missing = Object.entries(DEBIAN_PACKAGES).flatMap(([name, file]) => (existsSync(file) ? [] : [name]));
  if (missing.length === 0) return;
  if (process.getuid?.() !== 0 || !existsSync('/usr/bin/apt-get'))
    throw new Error(`the test bed needs these packages of Debian: apt-get install ${missing.join(' ')}`);
  say(`installing ${missing.join(', ')}`);
  const env = { DEBIAN_FRONTEND: 'noninteractive' };
  await run('apt-get', ['update', '-qq'], { env });
  await run('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...missing], { env });
}
