import { createHash } from 'node:crypto';
import {
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { prepareHarnesses } from '../../../bin/src/harnesses.ts';
import { ROOT } from '../../../bin/src/settings.ts';
import { cached, fill } from './binaries.ts';
import { run } from './commands.ts';
import { RUNNER_IMAGE } from './settings.ts';

/** Images for nodes that reach no registry: layers, a configuration and their digests, packed as an OCI archive. */

export const PAUSE_IMAGE = 'localhost/holdfast/pause:testbed';
/** Changes with what {@link baseLayer} does to the root file system. */
const RECIPE = 1;
const DOCKERFILE = 'harnesses/runner/Dockerfile';
/** What specs use that do not say otherwise; it comes with the checkout and is small. */
const HARNESSES = 'scripted';
/** Same content, same archive. */
const TAR = ['--sort=name', '--mtime=@0', '--numeric-owner', '--format=gnu'];
const ARCHITECTURE = process.arch === 'x64' ? 'amd64' : process.arch;

interface Layer {
  readonly file: string;
  readonly digest: string;
  readonly size: number;
}

/** An image whose layers lie on this machine. */
export interface Image {
  readonly names: readonly string[];
  readonly digest: string;
  readonly layers: readonly Layer[];
  readonly manifest: string;
  readonly config: string;
}

interface Settings {
  readonly Entrypoint: readonly string[];
  readonly Env: readonly string[];
  readonly User?: string;
  readonly WorkingDir?: string;
}

/** What the runner's Dockerfile says of the image. */
interface Recipe {
  readonly release: string;
  readonly packages: readonly string[];
  readonly settings: Settings;
}

export function readRecipe(dockerfile: string): Recipe {
  const text = dockerfile.replaceAll('\\\n', ' ');
  const last = text.slice(text.lastIndexOf('\nFROM ') + 1);
  const find = (pattern: RegExp): string => {
    const found = pattern.exec(last)?.[1];
    if (found === undefined) throw new Error(`${DOCKERFILE}: nothing fits ${String(pattern)}`);
    return found.trim();
  };
  return {
    release: find(/^FROM node:[\d.]+-(\w+)-slim/),
    packages: find(/apt-get install -y --no-install-recommends ([^&]+)/).split(/\s+/),
    settings: {
      Entrypoint: JSON.parse(find(/^ENTRYPOINT (\[.*\])/m)) as string[],
      Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', ...find(/^ENV (.*)/m).split(/\s+/)],
      User: find(/^USER (\S+)/m),
      WorkingDir: find(/^WORKDIR (\S+)/m),
    },
  };
}

async function layerOf(file: string): Promise<Layer> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(file)) hash.update(chunk as Buffer);
  return { file, digest: `sha256:${hash.digest('hex')}`, size: statSync(file).size };
}

const sha256 = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`;

function imageOf(names: (digest: string) => readonly string[], layers: readonly Layer[], settings: Settings): Image {
  const config = JSON.stringify({
    architecture: ARCHITECTURE,
    os: 'linux',
    config: settings,
    rootfs: { type: 'layers', diff_ids: layers.map(({ digest }) => digest) },
  });
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: {
      mediaType: 'application/vnd.oci.image.config.v1+json',
      digest: sha256(config),
      size: Buffer.byteLength(config),
    },
    layers: layers.map(({ digest, size }) => ({
      mediaType: 'application/vnd.oci.image.layer.v1.tar',
      digest,
      size,
    })),
  });
  const digest = sha256(manifest);
  return { names: names(digest), digest, layers, manifest, config };
}

/** Debian with the image's packages, Node and the user `agent`, as one layer. It is made once (a minute or two). */
async function baseLayer(recipe: Recipe, say: (line: string) => void): Promise<Layer> {
  const { release, packages } = recipe;
  const key = JSON.stringify([RECIPE, ARCHITECTURE, release, packages, process.version]);
  const folder = await fill(
    cached(`base-${createHash('sha256').update(key).digest('hex').slice(0, 12)}`),
    say,
    `assembling the runner image's base (Debian ${release}, Node ${process.version})`,
    async (into) => {
      const root = join(into, 'root');
      await run('debootstrap', ['--variant=minbase', `--include=${packages.join(',')}`, release, root]);
      const script = [
        'cp "$2" "$1/usr/local/bin/node" && chmod 755 "$1/usr/local/bin/node"',
        'install -d "$1/opt/holdfast" && install -m 0111 "$2" "$1/opt/holdfast/node"',
        'echo agent:x:1000: >> "$1/etc/group" && echo agent:x:1000:1000::/home/agent:/bin/bash >> "$1/etc/passwd"',
        'install -d -o 1000 -g 1000 "$1/home/agent" "$1/workspace"',
        'rm -rf "$1"/dev/* "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/var/log/*',
        'rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/*',
        'rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
      ];
      await run('sh', ['-euc', script.join('\n'), 'sh', root, process.execPath]);
      await run('tar', [...TAR, '-C', root, '-cf', join(into, 'layer.tar'), '.']);
      rmSync(root, { recursive: true });
      const { digest, size } = await layerOf(join(into, 'layer.tar'));
      writeFileSync(join(into, 'layer.json'), JSON.stringify({ digest, size }));
    },
  );
  const facts = JSON.parse(readFileSync(join(folder, 'layer.json'), 'utf8')) as Omit<Layer, 'file'>;
  return { ...facts, file: join(folder, 'layer.tar') };
}

/** One file that everyone may read, below folders of root, as a layer. */
async function fileLayer(scratch: string, path: string, source: string, mode: string): Promise<Layer> {
  const root = mkdtempSync(join(scratch, 'layer-'));
  await run('install', ['-D', '-m', mode, source, join(root, path)]);
  return folderLayer(root);
}

/** All that lies in a folder, as root's. */
async function folderLayer(root: string): Promise<Layer> {
  await run('tar', [...TAR, '--owner=0', '--group=0', '-C', root, '-cf', `${root}.tar`, ...readdirSync(root)]);
  return layerOf(`${root}.tar`);
}

/**
 * The image of `harnesses/runner/Dockerfile`, of this checkout's runner, with its moving and its fixed name; with the
 * coding harnesses on top that `HARNESSES` names, as their Dockerfiles add them.
 */
export async function runnerImage(scratch: string, say: (line: string) => void): Promise<Image> {
  const recipe = readRecipe(readFileSync(join(ROOT, DOCKERFILE), 'utf8'));
  const base = await baseLayer(recipe, say);
  await run('nx', ['run-many', '-t', 'build', '--projects=harnesses/*', '--outputStyle=static'], {
    cwd: ROOT,
    env: { NX_DAEMON: 'false', NX_NO_CLOUD: 'true' },
  });
  const bundle = join(ROOT, 'harnesses/runner/dist/runner.mjs');
  const top = await fileLayer(scratch, 'opt/holdfast/runner.mjs', bundle, '644');
  const root = mkdtempSync(join(scratch, 'harnesses-'));
  const names = process.env['HARNESSES'] ?? HARNESSES;
  const { folder } = await prepareHarnesses(names, process.env, join(root, 'opt/holdfast'), say);
  const layers = folder === '' ? [base, top] : [base, top, await folderLayer(root)];
  return imageOf(fixedName, layers, recipe.settings);
}

const fixedName = (digest: string): readonly string[] => [RUNNER_IMAGE, `${RUNNER_IMAGE}-${digest.slice(7, 19)}`];

export async function pauseImage(scratch: string, program: string): Promise<Image> {
  const layer = await fileLayer(scratch, 'pause', program, '755');
  return imageOf(() => [PAUSE_IMAGE], [layer], { Entrypoint: ['/pause'], Env: [] });
}

/** A folder for layers in the making, removed when the work is done. */
export async function withScratch<T>(work: (scratch: string) => Promise<T>): Promise<T> {
  const scratch = mkdtempSync(join(tmpdir(), 'holdfast-image-'));
  try {
    return await work(scratch);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

const ctr = (socket: string, ...args: string[]): Promise<string> => run('ctr', ['-a', socket, '-n', 'k8s.io', ...args]);

/** Digests of the images that a container runtime has, by name. */
export async function imagesOn(socket: string): Promise<ReadonlyMap<string, string>> {
  if (!existsSync(socket)) return new Map();
  const [, ...lines] = (await ctr(socket, 'images', 'ls')).trim().split('\n');
  return new Map(lines.map((line) => line.split(/\s+/)).map(([name = '', , digest = '']) => [name, digest]));
}

/** Gives a container runtime an image, unless it has it under these names. @returns whether it was missing */
export async function importImage(socket: string, image: Image): Promise<boolean> {
  const present = await imagesOn(socket);
  if (image.names.every((name) => present.get(name) === image.digest)) return false;
  await withScratch(async (layout) => {
    const blobs = join(layout, 'blobs/sha256');
    mkdirSync(blobs, { recursive: true });
    const write = (text: string): void => writeFileSync(join(blobs, sha256(text).slice(7)), text);
    write(image.manifest);
    write(image.config);
    // The base is half a gigabyte.
    const held = new Set((await ctr(socket, 'content', 'ls', '-q')).split('\n'));
    for (const { file, digest } of image.layers) if (!held.has(digest)) symlinkSync(file, join(blobs, digest.slice(7)));
    writeFileSync(join(layout, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }));
    writeFileSync(
      join(layout, 'index.json'),
      JSON.stringify({
        schemaVersion: 2,
        manifests: image.names.map((name) => ({
          mediaType: 'application/vnd.oci.image.manifest.v1+json',
          digest: image.digest,
          size: Buffer.byteLength(image.manifest),
          annotations: { 'io.containerd.image.name': name },
        })),
      }),
    );
    const pipe = 'tar -C "$1" -chf - . | ctr -a "$2" -n k8s.io images import -';
    await run('bash', ['-euo', 'pipefail', '-c', pipe, 'bash', layout, socket]);
  });
  return true;
}
