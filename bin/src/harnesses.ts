import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, readFileSync } from 'node:fs';
import { chmod, copyFile, link, mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { promisify } from 'node:util';
import { cacheDir } from './nats-server.ts';
import { ROOT } from './settings.ts';

const run = promisify(execFile);

/** One file that a harness comes with, and the npm package that holds it: that package's tarball is checked. */
interface HarnessFile {
  readonly name: string;
  /** Where it runs, `linux-x64` for instance; everywhere where it says nothing. */
  readonly platform?: string;
  /** With its version. */
  readonly package: string;
  readonly path: string;
  readonly integrity: string;
}

/** `harness.json` in a harness's folder: its version, and the files that its build does not make. */
interface HarnessManifest {
  readonly version: string;
  readonly files?: readonly HarnessFile[];
  /** An npm package, with its version, that the operator installed in the folder that a setting names: it is not ours to give. */
  readonly tree?: { readonly setting: string; readonly package: string };
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
 * and its program from npm, once per machine and user and checked by its integrity, or from where the operator installed
 * it. @throws Error that says what to do
 */
export async function prepareHarnesses(
  names: string,
  settings: Readonly<Record<string, string | undefined>>,
  stateDir: string,
  log: (line: string) => void,
): Promise<Harnesses> {
  const wanted = [...new Set(names.split(',').map((name) => name.trim()))].filter((name) => name !== '');
  if (wanted.length === 0) return { enabled: '', folder: '' };
  const folder = join(stateDir, 'harnesses');
  const enabled: string[] = [];
  for (const name of wanted) {
    const { version, files = [], tree } = manifestOf(name);
    const own = join(folder, name);
    await mkdir(own, { recursive: true });
    const built = join(ROOT, 'harnesses', name, 'dist');
    for (const file of (await readdir(built)).filter((one) => one.endsWith('.mjs')))
      await put(join(built, file), join(own, file), copyFile);
    const here = `${process.platform}-${process.arch}`;
    const fitting = files.filter(({ platform = here }) => platform === here);
    if (new Set(fitting.map((file) => file.name)).size < new Set(files.map((file) => file.name)).size)
      throw new Error(`HARNESSES: there is no ${name} for ${here}; leave it out`);
    // Large, and never changed: one file for all platforms on a machine where that can be.
    for (const file of fitting)
      await put(await installed(file, log), join(own, file.name), (from, to) =>
        link(from, to).catch(() => copyFile(from, to)),
      );
    if (tree !== undefined) await takeTree(name, tree, settings[tree.setting] ?? '', own);
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
  // Renamed to what is the same file already, it stays.
  await rm(fresh, { force: true });
}

/** What the operator installed, as links to the same files where that can be. */
async function takeTree(
  name: string,
  tree: { readonly setting: string; readonly package: string },
  from: string,
  own: string,
): Promise<void> {
  const at = tree.package.lastIndexOf('@');
  const manifest = join('node_modules', tree.package.slice(0, at), 'package.json');
  const versionIn = (folder: string): string | undefined => {
    const file = join(folder, manifest);
    return existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version : undefined;
  };
  if (from === '' || versionIn(from) !== tree.package.slice(at + 1))
    throw new Error(
      `HARNESSES: ${name} needs ${tree.setting}, a folder of yours: npm install --prefix <folder> ${tree.package}`,
    );
  if (versionIn(own) === versionIn(from)) return;
  const fresh = join(own, `node_modules.${process.pid}`);
  await run('cp', ['-a', '-l', join(from, 'node_modules'), fresh]).catch(() =>
    run('cp', ['-a', join(from, 'node_modules'), fresh]),
  );
  await rm(join(own, 'node_modules'), { recursive: true, force: true });
  await rename(fresh, join(own, 'node_modules'));
}

/** The file in this machine's cache, from npm the first time. */
async function installed(file: HarnessFile, log: (line: string) => void): Promise<string> {
  const kept = join(cacheDir(), `harness-${file.package.replace(/\W+/g, '-')}-${file.name}`);
  if (existsSync(kept)) return kept;
  log(`getting ${file.package} from npm (once)`);
  const fresh = `${kept}.${process.pid}`;
  await mkdir(fresh, { recursive: true });
  try {
    await run('npm', ['pack', file.package, '--pack-destination', fresh], { timeout: 600_000 });
    const [tarball = ''] = await readdir(fresh);
    const found = await integrityOf(join(fresh, tarball));
    if (found !== file.integrity) throw new Error(`${file.package} has the integrity ${found}, not ${file.integrity}`);
    await run('tar', ['-xzf', tarball, `package/${file.path}`], { cwd: fresh, timeout: 600_000 });
    // Whoever was faster has the same.
    await rename(join(fresh, 'package', file.path), kept);
  } finally {
    await rm(fresh, { recursive: true, force: true });
  }
  return kept;
}

async function integrityOf(file: string): Promise<string> {
  const hash = createHash('sha512');
  await pipeline(createReadStream(file), hash);
  return `sha512-${hash.digest('base64')}`;
}
