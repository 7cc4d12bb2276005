import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { get as httpGet, type IncomingMessage } from 'node:http';
import { get as httpsGet } from 'node:https';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Binaries, ensureBinaries } from './binaries.ts';
import { Certificates } from './certificates.ts';
import { Cluster, isReady } from './cluster.ts';
import { ensurePackages, run, succeeds } from './commands.ts';
import { CONTROL_PLANE, controlPlane, type PlanePart } from './control-plane.ts';
import { bridges, readSysctls, writeSysctls } from './host.ts';
import { type Image, imagesOn, importImage, pauseImage, runnerImage, withScratch } from './image.ts';
import { connect, nodeComponents, powerOff, removeNode, routePods, setLink } from './node.ts';
import { type Component, exclusively, Processes } from './processes.ts';
import { type Bed, type BedNode, loadBed, MAX_NODES, overlap, platformSettings, RUNNER_IMAGE } from './settings.ts';

type Say = (line: string) => void;

/** One line of `bin/testbed status`. */
export interface StatusLine {
  readonly name: string;
  readonly well: boolean;
  readonly detail: string;
}

type Part =
  | { readonly kind: 'program'; readonly name: PlanePart }
  | { readonly kind: 'node'; readonly node: BedNode }
  | { readonly kind: 'link'; readonly node: BedNode };

/** A cluster of this machine: what `bin/testbed` does, and what specs use to break it on purpose. */
export class Testbed {
  readonly bed: Bed;
  readonly #say: Say;
  readonly #processes: Processes;
  #loading: Promise<unknown> = Promise.resolve();

  constructor(say: Say = () => undefined, bed: Bed = loadBed()) {
    this.bed = bed;
    this.#say = say;
    this.#processes = new Processes(bed.stateDir);
  }

  /** Numbers of the nodes that have a folder. */
  #numbers(): number[] {
    return Array.from({ length: MAX_NODES }, (_, index) => index + 1).filter((number) =>
      existsSync(this.bed.node(number).dir),
    );
  }

  #nodes(): BedNode[] {
    return this.#numbers().map((number) => this.bed.node(number));
  }

  /** Everything that takes long and is done once. */
  async build(): Promise<Binaries> {
    await ensurePackages(this.#say);
    const binaries = await ensureBinaries(this.#say);
    await withScratch((scratch) => runnerImage(scratch, this.#say));
    return binaries;
  }

  /** Starts what does not run and waits until all is well. Changes nothing when all is well already. */
  async up(count: number | null): Promise<void> {
    if (process.getuid?.() !== 0) throw new Error('the test bed makes network namespaces and mounts: run it as root');
    await ensurePackages(this.#say);
    const binaries = await ensureBinaries(this.#say);
    await exclusively(this.bed, this.#say, () => this.#up(binaries, count));
  }

  async #up(binaries: Binaries, count: number | null): Promise<void> {
    const { bed } = this;
    this.#mustBeAlone();
    mkdirSync(bed.stateDir, { recursive: true, mode: 0o755 });
    const before = join(bed.stateDir, 'sysctls.json');
    if (!existsSync(before)) writeFileSync(before, JSON.stringify(readSysctls()));
    const wanted = count ?? Math.max(2, this.#numbers().length);
    if (!Number.isInteger(wanted) || wanted < 1 || wanted > MAX_NODES)
      throw new Error(`a bed has 1 to ${MAX_NODES} nodes`);
    const nodes = Array.from({ length: wanted }, (_, index) => bed.node(index + 1));

    await this.#network(nodes);
    const certificates = await Certificates.open(bed);
    const plane = await controlPlane(bed, binaries, certificates);
    await this.#start(plane.etcd);
    await this.#start(plane.apiserver);
    await Promise.all([this.#plane(plane, binaries), ...nodes.map((node) => this.#node(node, binaries, certificates))]);
    for (const node of this.#nodes()) if (!nodes.some(({ name }) => name === node.name)) await this.#removeNode(node);
  }

  /** Two beds on one network would take each other's nodes. One whose folder is gone is nobody's any more. */
  #mustBeAlone(): void {
    const { prefix, stateDir } = this.bed;
    for (const [bridge, dir] of bridges())
      if (dir !== stateDir && overlap(bridge, prefix) && existsSync(dir))
        throw new Error(
          `the bed in ${dir} uses the networks of ${bridge}, which overlap with this one's: set HOLDFAST_TESTBED_SUBNET to one that is three away, or end that bed: HOLDFAST_TESTBED_DIR=${dir} bin/testbed down`,
        );
  }

  async #network(nodes: readonly BedNode[]): Promise<void> {
    const { prefix, hostAddress, stateDir } = this.bed;
    if (!(await succeeds('ip', 'link', 'show', prefix))) {
      await run('ip', ['link', 'add', prefix, 'type', 'bridge']);
      await run('ip', ['addr', 'add', `${hostAddress}/24`, 'dev', prefix]);
      await run('ip', ['link', 'set', prefix, 'up']);
    }
    await run('ip', ['link', 'set', prefix, 'alias', stateDir]);
    await Promise.all(nodes.map((node) => connect(this.bed, node)));
    await routePods(nodes);
  }

  async #start(component: Component): Promise<boolean> {
    const started = await this.#processes.ensure(component);
    if (started) this.#say(`starting ${component.name}`);
    return started;
  }

  async #plane(plane: Readonly<Record<PlanePart, Component>>, binaries: Binaries): Promise<void> {
    await this.#untilWell('etcd');
    await this.#untilWell('apiserver');
    for (const part of ['controller-manager', 'scheduler', 'provisioner'] as const) await this.#start(plane[part]);
    await new Cluster(this.bed.kubeconfig).install(binaries.agentSandboxManifests);
    // Earlier, it would miss its kinds and exit.
    await this.#start(plane.controller);
    await Promise.all(CONTROL_PLANE.map((part) => this.#untilWell(part)));
  }

  async #untilWell(part: PlanePart): Promise<void> {
    const { kubeconfig, loopback } = this.bed;
    const probes: Readonly<Record<PlanePart, () => Promise<boolean>>> = {
      etcd: () => answersOk(`http://${loopback}:2379/health`),
      apiserver: () => new Cluster(kubeconfig).isReady(),
      'controller-manager': () => answersOk(`https://${loopback}:10257/healthz`),
      scheduler: () => answersOk(`https://${loopback}:10259/readyz`),
      // That it runs is all that is known of it.
      provisioner: () => Promise.resolve(true),
      controller: () => answersOk(`http://${loopback}:8081/readyz`),
    };
    await this.#processes.untilWell(part, probes[part]);
  }

  async #node(node: BedNode, binaries: Binaries, certificates: Certificates): Promise<void> {
    const { containerd, kubelet } = await nodeComponents(this.bed, node, binaries, certificates);
    // After a fault what is left of its pods must not be adopted.
    if (this.#processes.pid(containerd.name) === null) await this.#powerOff(node);
    await this.#start(containerd);
    await this.#processes.untilWell(containerd.name, () => succeeds('ctr', '-a', node.socket, 'version'));
    const present = await imagesOn(node.socket);
    if (!present.has(RUNNER_IMAGE)) await this.#load([node], binaries);
    await this.#untilWell('apiserver');
    const now = Date.now();
    const since = (await this.#start(kubelet)) ? now : 0;
    const cluster = new Cluster(this.bed.kubeconfig);
    await this.#processes.untilWell(kubelet.name, () => cluster.isNodeReady(node.name, since));
  }

  /** Builds the runner's image of this checkout and gives it to every node. @returns its fixed name */
  async load(): Promise<string> {
    const binaries = await ensureBinaries(this.#say);
    return exclusively(this.bed, this.#say, () => this.#load(this.#nodes(), binaries));
  }

  /** One load after another: two builds of the runner at once take its files from each other. */
  #load(nodes: readonly BedNode[], binaries: Binaries): Promise<string> {
    const load = this.#loading.then(() => this.#loadNow(nodes, binaries));
    this.#loading = load.catch(() => undefined);
    return load;
  }

  #loadNow(nodes: readonly BedNode[], binaries: Binaries): Promise<string> {
    return withScratch(async (scratch) => {
      const images: Image[] = [await pauseImage(scratch, binaries.pause), await runnerImage(scratch, this.#say)];
      for (const node of nodes)
        for (const image of images)
          if (await importImage(node.socket, image)) this.#say(`${node.name} has ${image.names.join(' = ')}`);
      return images.at(-1)?.names.at(-1) ?? RUNNER_IMAGE;
    });
  }

  /** The settings of a platform that runs its sandboxes here. */
  async environment(): Promise<Readonly<Record<string, string>>> {
    const [node] = this.#nodes();
    const images = node === undefined ? new Map<string, string>() : await imagesOn(node.socket);
    const digest = images.get(RUNNER_IMAGE);
    const fixed = [...images].find(([name, one]) => name.startsWith(`${RUNNER_IMAGE}-`) && one === digest)?.[0];
    return platformSettings(this.bed, fixed ?? RUNNER_IMAGE);
  }

  /** Ends and removes everything. */
  async down(): Promise<void> {
    await exclusively(this.bed, this.#say, () => this.#down());
  }

  async #down(): Promise<void> {
    const { bed } = this;
    // Killed, for nothing of it is wanted any more; and an API server without its etcd would hang on SIGTERM.
    this.#say('ending the control plane');
    await Promise.all(CONTROL_PLANE.map((name) => this.#processes.kill(name)));
    await Promise.all(
      this.#nodes().map(async (node) => {
        this.#say(`removing ${node.name}`);
        await this.#powerOff(node);
        await removeNode(node);
      }),
    );
    const bridgeOf = bridges().get(bed.prefix);
    if (bridgeOf === bed.stateDir || bridgeOf === '') await run('ip', ['link', 'delete', bed.prefix]);
    const before = join(bed.stateDir, 'sysctls.json');
    if (existsSync(before)) writeSysctls(JSON.parse(readFileSync(before, 'utf8')) as Record<string, string>);
    rmSync(bed.stateDir, { recursive: true, force: true });
  }

  async #powerOff(node: BedNode): Promise<void> {
    await this.#processes.kill(`${node.name}-kubelet`);
    await this.#processes.kill(`${node.name}-containerd`);
    await powerOff(node);
  }

  async #removeNode(node: BedNode): Promise<void> {
    this.#say(`removing ${node.name}`);
    await this.#powerOff(node);
    await removeNode(node);
    await new Cluster(this.bed.kubeconfig).deleteNode(node.name);
  }

  /**
   * Breaks a part on purpose, at once: a program of the control plane (`apiserver`, `etcd`, `controller`…), `node-1` (the
   * kubelet, the runtime and every process of its pods: a loss of power), `node-1-link` (its cable).
   */
  async kill(part: string): Promise<void> {
    const found = this.#part(part);
    if (found.kind === 'program') await this.#processes.kill(found.name);
    else if (found.kind === 'link') await setLink(found.node, 'down');
    else await this.#powerOff(found.node);
  }

  /** Brings back a part that {@link kill} has broken, and waits until it is well. A node needs the API server for that. */
  async start(part: string): Promise<void> {
    const found = this.#part(part);
    if (found.kind === 'link') return setLink(found.node, 'up');
    const binaries = await ensureBinaries(this.#say);
    await exclusively(this.bed, this.#say, async () => {
      const certificates = await Certificates.open(this.bed);
      if (found.kind === 'node') return this.#node(found.node, binaries, certificates);
      await this.#start((await controlPlane(this.bed, binaries, certificates))[found.name]);
      await this.#untilWell(found.name);
    });
  }

  #part(part: string): Part {
    const program = CONTROL_PLANE.find((name) => name === part);
    if (program !== undefined) return { kind: 'program', name: program };
    for (const node of this.#nodes()) {
      if (part === node.name) return { kind: 'node', node };
      if (part === `${node.name}-link`) return { kind: 'link', node };
    }
    const nodes = this.#nodes().flatMap(({ name }) => [name, `${name}-link`]);
    throw new Error(`${part} is no part of the bed; there are ${[...CONTROL_PLANE, ...nodes].join(', ')}`);
  }

  /** What runs and how it is. */
  async status(): Promise<readonly StatusLine[]> {
    const lines: StatusLine[] = [];
    const process = (name: string): void => {
      const pid = this.#processes.pid(name);
      lines.push({ name, well: pid !== null, detail: pid === null ? 'not running' : `pid ${pid}` });
    };
    for (const name of CONTROL_PLANE) process(name);
    for (const { name } of this.#nodes()) for (const part of ['containerd', 'kubelet']) process(`${name}-${part}`);
    if (!existsSync(this.bed.kubeconfig)) return lines;
    const cluster = new Cluster(this.bed.kubeconfig);
    try {
      const found = await Promise.race([cluster.nodes(), sleep(5_000, null, { ref: false })]);
      if (found === null) throw new Error('no answer within 5 s');
      for (const { name } of this.#nodes()) {
        const node = found.find(({ metadata }) => metadata?.name === name);
        const { kubeletVersion, containerRuntimeVersion } = node?.status?.nodeInfo ?? {};
        const detail = node === undefined ? 'not registered' : `${kubeletVersion}, ${containerRuntimeVersion}`;
        lines.push({ name, well: isReady(node), detail });
      }
      const missing = await cluster.missingKinds();
      lines.push({
        name: 'agent-sandbox',
        well: missing.length === 0,
        detail: missing.length === 0 ? 'its kinds are served' : `not served: ${missing.join(', ')}`,
      });
      lines.push({ name: 'pods', well: true, detail: String(await cluster.podCount()) });
    } catch (error) {
      lines.push({ name: 'api', well: false, detail: error instanceof Error ? error.message : String(error) });
    }
    return lines;
  }
}

/** On loopback: what certificate it shows does not matter. */
async function answersOk(url: string): Promise<boolean> {
  const options = { rejectUnauthorized: false, signal: AbortSignal.timeout(2_000) };
  const request = url.startsWith('https:') ? httpsGet(url, options) : httpGet(url, options);
  const [response] = (await once(request, 'response')) as [IncomingMessage];
  response.resume();
  return response.statusCode === 200;
}
