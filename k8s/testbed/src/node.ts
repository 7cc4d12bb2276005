import { existsSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Binaries } from './binaries.ts';
import type { Certificates } from './certificates.ts';
import { run, succeeds } from './commands.ts';
import { killByArguments, killCgroup, makeCgroup, removeCgroup, removeLinksInto, unmountBelow } from './host.ts';
import { PAUSE_IMAGE } from './image.ts';
import type { Component } from './processes.ts';
import type { Bed, BedNode } from './settings.ts';

const NAMESPACES = '/var/run/netns';
/** Where shims listen, whatever their containerd is told. */
const SHIM_ADDRESSES = 'state/io.containerd.runtime.v2.task/*/*/address';
/** The CNI library remembers here what it set up, by the ids of pods; the container runtime knows those. */
const CNI_RESULTS = '/var/lib/cni/results';
const POD_IDS = 'root/io.containerd.grpc.v1.cri/sandboxes/*';
const RUNNING_POD_LINKS = '/var/log/containers';

/** Joins the bed's bridge and a network namespace of its own with a cable. */
export async function connect(bed: Bed, node: BedNode): Promise<void> {
  const { hostName, link } = node;
  if (!existsSync(join(NAMESPACES, hostName))) await run('ip', ['netns', 'add', hostName]);
  const inside = (...args: string[]) => run('ip', ['-n', hostName, ...args]);
  if (!(await succeeds('ip', 'link', 'show', link))) {
    await run('ip', ['link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', hostName]);
    await run('ip', ['link', 'set', link, 'master', bed.prefix]);
    await inside('addr', 'add', `${node.address}/24`, 'dev', 'eth0');
    await inside('link', 'set', 'lo', 'up');
    await inside('link', 'set', 'eth0', 'up');
    await inside('route', 'add', 'default', 'via', bed.hostAddress);
    await run('nsenter', [`--net=${join(NAMESPACES, hostName)}`, 'sh', '-c', 'echo 1 > /proc/sys/net/ipv4/ip_forward']);
  }
  await run('ip', ['link', 'set', link, 'up']);
  await run('ip', ['route', 'replace', node.podSubnet, 'via', node.address]);
}

/** Says how pods of the other nodes are reached: straight, so that the host need not forward. */
export async function routePods(nodes: readonly BedNode[]): Promise<void> {
  for (const from of nodes)
    for (const to of nodes)
      if (from !== to) await run('ip', ['-n', from.hostName, 'route', 'replace', to.podSubnet, 'via', to.address]);
}

/** The container runtime of a node, and its kubelet. */
export async function nodeComponents(
  bed: Bed,
  node: BedNode,
  binaries: Binaries,
  certificates: Certificates,
): Promise<{ readonly containerd: Component; readonly kubelet: Component }> {
  const at = (...parts: string[]): string => join(node.dir, ...parts);
  for (const dir of ['cni', 'kubelet', 'plugins', 'pods']) mkdirSync(at(dir), { recursive: true });
  makeCgroup(node.hostName);

  const runtime = containerdConfig(node);
  const network = JSON.stringify(networkConfig(node), null, 2);
  writeFileSync(at('containerd.toml'), runtime);
  writeFileSync(at('cni', '10-pods.conflist'), network);
  writeFileSync(at('resolv.conf'), `nameserver ${bed.hostAddress}\n`);
  const client = await certificates.kubeconfig(node.name, `/O=system:nodes/CN=system:node:${node.name}`);
  const server = await certificates.issue(`${node.name}-server`, `/CN=${node.name}`, [`IP:${node.address}`]);
  const config = JSON.stringify(
    { ...kubeletConfig(node, certificates.authority), tlsCertFile: server.certificate, tlsPrivateKeyFile: server.key },
    null,
    2,
  );
  writeFileSync(at('kubelet.json'), config);
  const inNetwork = [`--net=${join(NAMESPACES, node.hostName)}`];
  return {
    containerd: {
      name: `${node.name}-containerd`,
      command: 'nsenter',
      args: [...inNetwork, 'containerd', '--config', at('containerd.toml')],
      inputs: [runtime, network],
    },
    kubelet: {
      name: `${node.name}-kubelet`,
      command: 'nsenter',
      args: [
        ...[...inNetwork, binaries.kubelet, '--config', at('kubelet.json'), '--kubeconfig', client],
        ...['--hostname-override', node.name, '--node-ip', node.address],
        ...['--root-dir', at('kubelet'), '--cert-dir', at('kubelet', 'pki')],
      ],
      inputs: [config],
    },
  };
}

function containerdConfig(node: BedNode): string {
  const quoted = (...parts: string[]): string => JSON.stringify(join(node.dir, ...parts));
  return `version = 2
root = ${quoted('root')}
state = ${quoted('state')}
# It makes /opt/containerd.
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = ${JSON.stringify(node.socket)}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE_IMAGE}"
  # Lowering it needs a capability that not every root has.
  restrict_oom_score_adj = true
  disable_apparmor = true
  # So that they go with the node.
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = ${quoted('cni')}

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      Root = ${quoted('state', 'runc')}
`;
}

function networkConfig(node: BedNode): object {
  return {
    cniVersion: '1.0.0',
    name: node.hostName,
    plugins: [
      {
        type: 'bridge',
        bridge: 'cni0',
        isGateway: true,
        // Pods keep their addresses on the way to the host, and nothing leads beyond it.
        ipMasq: false,
        ipam: {
          type: 'host-local',
          dataDir: join(node.dir, 'state', 'addresses'),
          ranges: [[{ subnet: node.podSubnet }]],
          routes: [{ dst: '0.0.0.0/0' }],
        },
      },
    ],
  };
}

function kubeletConfig(node: BedNode, authority: string): object {
  return {
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    kind: 'KubeletConfiguration',
    containerRuntimeEndpoint: `unix://${node.socket}`,
    address: node.address,
    readOnlyPort: 0,
    healthzBindAddress: '127.0.0.1',
    authentication: { anonymous: { enabled: false }, webhook: { enabled: true }, x509: { clientCAFile: authority } },
    authorization: { mode: 'Webhook' },
    cgroupDriver: 'cgroupfs',
    failCgroupV1: false,
    // With a shared root each kubelet kills the pods of the others as orphans.
    cgroupRoot: `/${node.hostName}`,
    enforceNodeAllocatable: [],
    failSwapOn: false,
    oomScoreAdj: 0,
    // A fork bomb ends here, not at the machine's own limit.
    podPidsLimit: 512,
    resolvConf: join(node.dir, 'resolv.conf'),
    podLogsDir: join(node.dir, 'pods'),
    volumePluginDir: join(node.dir, 'plugins'),
    // Nothing could be pulled again.
    imageGCHighThresholdPercent: 100,
    evictionHard: {
      'memory.available': '100Mi',
      'nodefs.available': '1%',
      'nodefs.inodesFree': '1%',
      'imagefs.available': '1%',
    },
    // A lost node is noticed soon.
    nodeStatusUpdateFrequency: '4s',
    nodeLeaseDurationSeconds: 8,
    serializeImagePulls: false,
  };
}

/**
 * What a loss of power does to a node: its kubelet and runtime are dead already, now every process of its pods is, and
 * what only memory held is gone. Its disk stays.
 */
export async function powerOff(node: BedNode): Promise<void> {
  await killByArguments('/containerd-shim-runc-v2', '-address', node.socket);
  await killCgroup(node.hostName);
  for (const file of globSync(SHIM_ADDRESSES, { cwd: node.dir })) {
    const address = readFileSync(join(node.dir, file), 'utf8').trim();
    if (address.startsWith('unix:///')) rmSync(address.slice('unix://'.length), { force: true });
  }
  await unmountBelow(node.dir);
  rmSync(join(node.dir, 'state'), { recursive: true, force: true });
}

/** Removes all that a node has left on the host, after {@link powerOff}. */
export async function removeNode(node: BedNode): Promise<void> {
  await removeCgroup(node.hostName);
  if (await succeeds('ip', 'link', 'show', node.link)) await run('ip', ['link', 'delete', node.link]);
  if (existsSync(join(NAMESPACES, node.hostName))) await run('ip', ['netns', 'delete', node.hostName]);
  for (const pod of globSync(POD_IDS, { cwd: node.dir }))
    for (const file of globSync(`*-${basename(pod)}-*`, { cwd: CNI_RESULTS })) rmSync(join(CNI_RESULTS, file));
  removeLinksInto(RUNNING_POD_LINKS, node.dir);
  rmSync(node.dir, { recursive: true, force: true });
}

/** Its only cable: out is a node that lives and cannot be reached. */
export async function setLink(node: BedNode, state: 'up' | 'down'): Promise<void> {
  await run('ip', ['link', 'set', node.link, state]);
}
