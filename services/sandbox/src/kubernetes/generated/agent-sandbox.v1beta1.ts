// Generated, sha256 of the rest 9f11e23d56095b3bacb0697204eecb7ed054048c2b8c92d3b89c25035fc50b84
import type { Condition, NetworkPolicyEgressRule, NetworkPolicyIngressRule, ObjectMeta, PersistentVolumeClaimSpec, PodSpec } from '../kinds.ts';

/** Made from the CRDs of sigs.k8s.io/agent-sandbox@v0.5.6 by bin/src/generate-kubernetes-types.ts. */
export interface Sandbox {
  readonly apiVersion: 'agents.x-k8s.io/v1beta1';
  readonly kind: 'Sandbox';
  readonly metadata: ObjectMeta;
  readonly spec: {
    readonly operatingMode?: 'Running' | 'Suspended';
    readonly podTemplate: {
      readonly metadata?: {
        readonly annotations?: Readonly<Record<string, string>>;
        readonly labels?: Readonly<Record<string, string>>;
      };
      readonly spec: PodSpec;
    };
    readonly service?: boolean;
    readonly shutdownPolicy?: 'Delete' | 'Retain';
    readonly shutdownTime?: string;
    readonly volumeClaimTemplates?: readonly {
      readonly metadata?: {
        readonly annotations?: Readonly<Record<string, string>>;
        readonly labels?: Readonly<Record<string, string>>;
        readonly name?: string;
      };
      readonly spec: PersistentVolumeClaimSpec;
    }[];
  };
  readonly status?: {
    readonly conditions?: readonly Condition[];
    readonly nodeName?: string;
    readonly podIPs?: readonly string[];
    readonly selector?: string;
    readonly service?: string;
    readonly serviceFQDN?: string;
  };
}
export interface SandboxClaim {
  readonly apiVersion: 'extensions.agents.x-k8s.io/v1beta1';
  readonly kind: 'SandboxClaim';
  readonly metadata: ObjectMeta;
  readonly spec: {
    readonly additionalPodMetadata?: {
      readonly annotations?: Readonly<Record<string, string>>;
      readonly labels?: Readonly<Record<string, string>>;
    };
    readonly env?: readonly {
      readonly containerName?: string;
      readonly name: string;
      readonly value: string;
    }[];
    readonly lifecycle?: {
      readonly shutdownPolicy?: 'Delete' | 'DeleteForeground' | 'Retain';
      readonly shutdownTime?: string;
      readonly ttlSecondsAfterFinished?: number;
    };
    readonly volumeClaimTemplates?: readonly {
      readonly metadata?: {
        readonly annotations?: Readonly<Record<string, string>>;
        readonly labels?: Readonly<Record<string, string>>;
        readonly name?: string;
      };
      readonly spec: PersistentVolumeClaimSpec;
    }[];
    readonly warmPoolRef: {
      readonly name: string;
    };
  };
  readonly status?: {
    readonly conditions?: readonly Condition[];
    readonly sandbox?: {
      readonly name?: string;
      readonly podIPs?: readonly string[];
    };
  };
}
export interface SandboxTemplate {
  readonly apiVersion: 'extensions.agents.x-k8s.io/v1beta1';
  readonly kind: 'SandboxTemplate';
  readonly metadata: ObjectMeta;
  readonly spec: {
    readonly envVarsInjectionPolicy?: 'Allowed' | 'Overrides' | 'Disallowed';
    readonly networkPolicy?: {
      readonly egress?: readonly NetworkPolicyEgressRule[];
      readonly ingress?: readonly NetworkPolicyIngressRule[];
    };
    readonly networkPolicyManagement?: 'Managed' | 'Unmanaged';
    readonly podTemplate: {
      readonly metadata?: {
        readonly annotations?: Readonly<Record<string, string>>;
        readonly labels?: Readonly<Record<string, string>>;
      };
      readonly spec: PodSpec;
    };
    readonly service?: boolean;
    readonly volumeClaimTemplates?: readonly {
      readonly metadata?: {
        readonly annotations?: Readonly<Record<string, string>>;
        readonly labels?: Readonly<Record<string, string>>;
        readonly name?: string;
      };
      readonly spec: PersistentVolumeClaimSpec;
    }[];
    readonly volumeClaimTemplatesPolicy?: 'Disallowed' | 'Allowed' | 'Overrides';
  };
}
export interface SandboxWarmPool {
  readonly apiVersion: 'extensions.agents.x-k8s.io/v1beta1';
  readonly kind: 'SandboxWarmPool';
  readonly metadata: ObjectMeta;
  readonly spec: {
    readonly replicas?: number;
    readonly sandboxTemplateRef: {
      readonly name: string;
    };
    readonly updateStrategy?: {
      readonly type?: 'Recreate' | 'OnReplenish';
    };
  };
  readonly status?: {
    readonly observedGeneration?: number;
    readonly readyReplicas?: number;
    readonly replicas?: number;
    readonly selector?: string;
  };
}
