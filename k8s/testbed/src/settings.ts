import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The test bed's own folder in the checkout. */
export const TESTBED = join(fileURLToPath(import.meta.url), '../..');

/** One node: a network namespace with a container runtime and a kubelet. */
export interface BedNode {
  /** Its name in the cluster. */
  readonly name: string;
  /** Its name among network namespaces and cgroups, where other beds may be. */
  readonly hostName: string;
  readonly address: string;
  readonly podSubnet: string;
  /** The host's end of its only cable. */
  readonly link: string;
  readonly dir: string;
  readonly socket: string;
}

/** Where one test bed lives. Nothing of it lies anywhere else but in the cache. */
export interface Bed {
  /** Begins the name of everything that it makes on the host. */
  readonly prefix: string;
  readonly stateDir: string;
  /** The administrator's. */
  readonly kubeconfig: string;
  /** The sandbox service's, with the least rights that it works with. */
  readonly serviceKubeconfig: string;
  /** The bridge: here pods and nodes reach the host. */
  readonly hostAddress: string;
  /** For what only this host needs. */
  readonly loopback: string;
  readonly serviceSubnet: string;
  readonly serviceAddress: string;
  readonly apiUrl: string;
  readonly node: (number: number) => BedNode;
}

const API_PORT = 16_443;
export const MAX_NODES = 20;
/** Containers' runtimes put sockets below it. */
const MAX_PATH = 80;
/** Moves with every `load`; pods that must stay as they are name the digest's tag. */
export const RUNNER_IMAGE = 'localhost/holdfast/runner:testbed';

/** The bed that the environment names: `HOLDFAST_TESTBED_DIR`, `HOLDFAST_TESTBED_SUBNET` (two numbers, `10.87`). */
export function loadBed(environment: NodeJS.ProcessEnv = process.env): Bed {
  const subnet = environment.HOLDFAST_TESTBED_SUBNET ?? '10.87';
  const [first, second] = /^(\d{1,3})\.(\d{1,3})$/.exec(subnet)?.slice(1).map(Number) ?? [];
  if (first === undefined || second === undefined || first > 223 || second > 253)
    throw new Error(
      `HOLDFAST_TESTBED_SUBNET=${subnet}: give the first two numbers of a private network, such as 10.87`,
    );
  const prefix = `hf-${first}-${second}`;
  const given = environment.HOLDFAST_TESTBED_DIR ?? '';
  const stateHome = environment.XDG_STATE_HOME ?? join(homedir(), '.local/state');
  const stateDir = given === '' ? join(stateHome, 'holdfast-testbed') : resolve(given);
  if (stateDir.length > MAX_PATH)
    throw new Error(`${stateDir} is too long: a socket below it may have 107 characters; set HOLDFAST_TESTBED_DIR`);
  const hostAddress = `${first}.${second}.0.1`;
  return {
    prefix,
    stateDir,
    kubeconfig: join(stateDir, 'admin.kubeconfig'),
    serviceKubeconfig: join(stateDir, 'service.kubeconfig'),
    hostAddress,
    loopback: `127.${first}.${second}.1`,
    serviceSubnet: `${first}.${second + 2}.0.0/24`,
    serviceAddress: `${first}.${second + 2}.0.1`,
    apiUrl: `https://${hostAddress}:${API_PORT}`,
    node: (number) => {
      const name = `node-${number}`;
      const dir = join(stateDir, name);
      return {
        name,
        hostName: `${prefix}-${name}`,
        address: `${first}.${second}.0.${10 + number}`,
        podSubnet: `${first}.${second + 1}.${number}.0/24`,
        link: `${prefix}-n${number}`,
        dir,
        socket: join(dir, 'containerd.sock'),
      };
    },
  };
}

/** Whether two beds with these prefixes would share an address: each takes three networks in a row. */
export function overlap(one: string, other: string): boolean {
  const [[first, second], [otherFirst, otherSecond]] = [one, other].map((prefix) =>
    prefix.split('-').slice(1).map(Number),
  ) as [[number, number], [number, number]];
  return first === otherFirst && Math.abs(second - otherSecond) < 3;
}

/** The kubeconfig of a cluster that somebody else looks after, when `HOLDFAST_TESTBED=existing` chooses it. */
export function existingCluster(environment: NodeJS.ProcessEnv = process.env): string | null {
  if (environment.HOLDFAST_TESTBED !== 'existing') return null;
  const kubeconfig = environment.KUBECONFIG ?? '';
  if (kubeconfig === '') throw new Error('HOLDFAST_TESTBED=existing needs KUBECONFIG');
  return kubeconfig;
}

/** What the platform needs to know to run its sandboxes on the bed, as `.env` has it. */
export function platformSettings(bed: Bed, image: string): Readonly<Record<string, string>> {
  return {
    SANDBOX_PROVIDER: 'kubernetes',
    KUBECONFIG: bed.serviceKubeconfig,
    SANDBOX_IMAGE: image,
    SANDBOX_IMAGE_PULL_POLICY: 'Never',
    HUB_HOST: bed.hostAddress,
  };
}
