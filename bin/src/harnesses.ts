import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { chmod, copyFile, link, mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cacheDir } from './nats-server.ts';
import { ROOT } from './settings.ts';

const run = promisify(execFile);

/** `harness.json` in a harness's folder: its version, and the npm package of each platform that its program comes from. */
interface HarnessManifest {
  readonly version: string;
  readonly program?: string;
  readonly packages?: Readonly<
    Record<string, { readonly name: string; readonly path: string; readonly integrity: string }>
  >;
}

/** The coding harnesses of a deployment. */
export interface Harnesses {
  /** As the session service takes them: `name@version`, separated by commas. */
  readonly enabled: string;
  /** Holds a folder for each; empty when there is none. */
  readonly folder: string;
}

/**
 * Puts the harnesses named in `names` (separated by commas) where sandboxes find them: each one's profile from the build,
 * and its program from npm, once per machine and user and checked by its integrity. @throws Error that says what to do
 */
export async function prepareHarnesses(
  names: string,
  stateDir: string,
  log: (line: string) => void,
): Promise<Harnesses> {
  const wanted = [...new Set(names.split(',').map((name) => name.trim()))].filter((name) => name !== '');
  if (wanted.length === 0) return { enabled: '', folder: '' };
  const folder = join(stateDir, 'harnesses');
  const enabled: string[] = [];
  for (const name of wanted) {
    const { version, program, packages } = manifestOf(name);
    const own = join(folder, name);
    await mkdir(own, { recursive: true });
    const built = join(ROOT, 'harnesses', name, 'dist');
    for (const file of (await readdir(built)).filter((one) => one.endsWith('.mjs')))
      await put(join(built, file), join(own, file), copyFile);
    if (program !== undefined) {
      const source = packages?.[`${process.platform}-${process.arch}`];
      if (source === undefined)
        throw new Error(`HARNESSES: there is no ${name} for ${process.platform}-${process.arch}; leave it out`);
      // Large, and never changed: one file for all platforms on a machine where that can be.
      await put(await installed(name, version, source, log), join(own, program), (from, to) =>
        link(from, to).catch(() => copyFile(from, to)),
      );
    }
    enabled.push(`${name}@${version}`);
  }
  return { enabled: enabled.join(','), folder };
}

function manifestOf(name: string): HarnessManifest {
  const file = join(ROOT, 'harnesses', name, 'harness.json');
  if (!/^[a-z][a-z0-9_]*$/.test(name) || !existsSync(file))
    throw new Error(`HARNESSES: there is no harness ${name}; docs/harnesses.md names those that there are`);
  return JSON.parse(readFileSync(file, 'utf8')) as HarnessManifest;
}

/** In place of what stood there; whoever runs the old file goes on with it. */
async function put(from: string, to: string, by: (from: string, to: string) => Promise<void>): Promise<void> {
  const fresh = `${to}.${process.pid}`;
  await rm(fresh, { force: true });
  await by(from, fresh);
  await chmod(fresh, 0o755);
  await rename(fresh, to);
}

async function installed(
  name: string,
  version: string,
  source: { readonly name: string; readonly path: string; readonly integrity: string },
  log: (line: string) => void,
): Promise<string> {
  const home = join(cacheDir(), `harness-${name}-${version}`);
  const program = join(home, 'node_modules', source.name, source.path);
  if (existsSync(program)) return program;
  log(`installing ${name} ${version} from npm (once)`);
  const fresh = `${home}.${process.pid}`;
  await rm(fresh, { recursive: true, force: true });
  await mkdir(fresh, { recursive: true });
  const flags = ['--prefix', fresh, '--no-save', '--ignore-scripts', '--no-audit', '--no-fund'];
  await run('npm', ['install', ...flags, `${source.name}@${version}`], { timeout: 600_000, maxBuffer: 1 << 24 });
  const lock = JSON.parse(readFileSync(join(fresh, 'node_modules', '.package-lock.json'), 'utf8')) as {
    packages: Record<string, { integrity?: string }>;
  };
  const found = lock.packages[`node_modules/${source.name}`]?.integrity;
  if (found !== source.integrity) {
    await rm(fresh, { recursive: true, force: true });
    throw new Error(`${source.name}@${version} has the integrity ${found}, not ${source.integrity}`);
  }
  await rename(fresh, home).catch(async (error: unknown) => {
    await rm(fresh, { recursive: true, force: true });
    // Another one was faster.
    if (!existsSync(program)) throw error;
  });
  return program;
}
