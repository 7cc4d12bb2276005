import type {
  CoreV1Event,
  V1Condition,
  V1LimitRange,
  V1Namespace,
  V1NetworkPolicy,
  V1NetworkPolicyEgressRule,
  V1NetworkPolicyIngressRule,
  V1Node,
  V1OwnerReference,
  V1PersistentVolumeClaim,
  V1PersistentVolumeClaimSpec,
  V1Pod,
  V1PodSpec,
  V1ResourceQuota,
  V1ServiceAccount,
} from '@kubernetes/client-node';
import type { Sandbox, SandboxClaim, SandboxTemplate, SandboxWarmPool } from './generated/agent-sandbox.v1beta1.ts';

/** A type of the client as JSON has it: times are text, no member is renamed, and nothing is changed in place. */
export type Wire<T> = T extends Date
  ? string
  : T extends readonly (infer E)[]
    ? readonly Wire<E>[]
    : T extends object
      ? { readonly [K in keyof T as K extends `_${infer Name}` ? Name : K]: Wire<T[K]> }
      : T;

export type OwnerReference = Wire<V1OwnerReference>;
export type Condition = Wire<V1Condition>;
export type PodSpec = Wire<V1PodSpec>;
export type PersistentVolumeClaimSpec = Wire<V1PersistentVolumeClaimSpec>;
export type NetworkPolicyIngressRule = Wire<V1NetworkPolicyIngressRule>;
export type NetworkPolicyEgressRule = Wire<V1NetworkPolicyEgressRule>;

export interface ObjectMeta {
  readonly name: string;
  /** Absent in what has no namespace. */
  readonly namespace?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly uid?: string;
  readonly resourceVersion?: string;
  readonly generation?: number;
  readonly creationTimestamp?: string;
  /** Being deleted; it stays until its finalizers and its grace period are over. */
  readonly deletionTimestamp?: string;
  readonly ownerReferences?: readonly OwnerReference[];
}
export interface KubernetesObject {
  readonly apiVersion: string;
  readonly kind: KindName;
  readonly metadata: ObjectMeta;
}

type BuiltIn<K extends string, A extends string, T> = Wire<Omit<T, 'apiVersion' | 'kind' | 'metadata'>> & {
  readonly apiVersion: A;
  readonly kind: K;
  readonly metadata: ObjectMeta;
};
export type Namespace = BuiltIn<'Namespace', 'v1', V1Namespace>;
export type ServiceAccount = BuiltIn<'ServiceAccount', 'v1', V1ServiceAccount>;
export type ResourceQuota = BuiltIn<'ResourceQuota', 'v1', V1ResourceQuota>;
export type LimitRange = BuiltIn<'LimitRange', 'v1', V1LimitRange>;
export type PersistentVolumeClaim = BuiltIn<'PersistentVolumeClaim', 'v1', V1PersistentVolumeClaim>;
export type Pod = BuiltIn<'Pod', 'v1', V1Pod>;
export type Node = BuiltIn<'Node', 'v1', V1Node>;
export type Event = BuiltIn<'Event', 'v1', CoreV1Event>;
export type NetworkPolicy = BuiltIn<'NetworkPolicy', 'networking.k8s.io/v1', V1NetworkPolicy>;

/** Every kind that the service reads or writes. */
export interface Kinds {
  readonly Namespace: Namespace;
  readonly ServiceAccount: ServiceAccount;
  readonly ResourceQuota: ResourceQuota;
  readonly LimitRange: LimitRange;
  readonly NetworkPolicy: NetworkPolicy;
  readonly PersistentVolumeClaim: PersistentVolumeClaim;
  readonly Pod: Pod;
  readonly Node: Node;
  readonly Event: Event;
  readonly Sandbox: Sandbox;
  readonly SandboxClaim: SandboxClaim;
  readonly SandboxTemplate: SandboxTemplate;
  readonly SandboxWarmPool: SandboxWarmPool;
}
export type KindName = keyof Kinds;

/** Where the API server has each kind. */
export const RESOURCES = {
  Namespace: { apiVersion: 'v1', plural: 'namespaces' },
  ServiceAccount: { apiVersion: 'v1', plural: 'serviceaccounts' },
  ResourceQuota: { apiVersion: 'v1', plural: 'resourcequotas' },
  LimitRange: { apiVersion: 'v1', plural: 'limitranges' },
  NetworkPolicy: { apiVersion: 'networking.k8s.io/v1', plural: 'networkpolicies' },
  PersistentVolumeClaim: { apiVersion: 'v1', plural: 'persistentvolumeclaims' },
  Pod: { apiVersion: 'v1', plural: 'pods' },
  Node: { apiVersion: 'v1', plural: 'nodes' },
  Event: { apiVersion: 'v1', plural: 'events' },
  Sandbox: { apiVersion: 'agents.x-k8s.io/v1beta1', plural: 'sandboxes' },
  SandboxClaim: { apiVersion: 'extensions.agents.x-k8s.io/v1beta1', plural: 'sandboxclaims' },
  SandboxTemplate: { apiVersion: 'extensions.agents.x-k8s.io/v1beta1', plural: 'sandboxtemplates' },
  SandboxWarmPool: { apiVersion: 'extensions.agents.x-k8s.io/v1beta1', plural: 'sandboxwarmpools' },
} as const satisfies {
  readonly [K in KindName]: { readonly apiVersion: Kinds[K]['apiVersion']; readonly plural: string };
};

/** An object as the API server answered it. */
export type Stored<T extends { readonly metadata: ObjectMeta }> = T & {
  readonly metadata: { readonly uid: string; readonly resourceVersion: string; readonly creationTimestamp: string };
};
export type { Sandbox, SandboxClaim, SandboxTemplate, SandboxWarmPool };
