import type { Agent, CredentialKind, Environment, FileResource, SessionView } from '@holdfast/contracts';
import { Column, Entity, PrimaryColumn } from 'typeorm';

/** A team: the boundary of everything below. */
@Entity('workspaces')
export class WorkspaceEntity {
  @PrimaryColumn('text') id!: string;
  @Column('text') name!: string;
  @Column('timestamptz', { name: 'created_at' }) createdAt!: Date;
}

/** An API key, a dashboard session or a one-time link; only the hash of its text is kept. */
@Entity('api_keys')
export class ApiKeyEntity {
  @PrimaryColumn('text') id!: string;
  @Column('text', { name: 'workspace_id' }) workspaceId!: string;
  @Column('text') name!: string;
  @Column('text') kind!: CredentialKind;
  @Column('bytea') hash!: Buffer;
  @Column('text') hint!: string;
  @Column('text', { name: 'parent_id', nullable: true }) parentId!: string | null;
  @Column('text', { name: 'environment_id', nullable: true }) environmentId!: string | null;
  @Column('timestamptz', { name: 'created_at' }) createdAt!: Date;
  @Column('timestamptz', { name: 'expires_at', nullable: true }) expiresAt!: Date | null;
  @Column('timestamptz', { name: 'revoked_at', nullable: true }) revokedAt!: Date | null;
}

@Entity('agents')
export class AgentEntity {
  @PrimaryColumn('text') id!: string;
  @Column('text', { name: 'workspace_id' }) workspaceId!: string;
  @Column('jsonb') resource!: Agent;
  @Column('integer') version!: number;
  @Column('timestamptz', { name: 'created_at' }) createdAt!: Date;
  @Column('timestamptz', { name: 'archived_at', nullable: true }) archivedAt!: Date | null;
}

@Entity('agent_versions')
export class AgentVersionEntity {
  @PrimaryColumn('text', { name: 'agent_id' }) agentId!: string;
  @PrimaryColumn('integer') version!: number;
  @Column('text', { name: 'workspace_id' }) workspaceId!: string;
  @Column('jsonb') resource!: Agent;
  @Column('timestamptz', { name: 'created_at' }) createdAt!: Date;
}

@Entity('environments')
export class EnvironmentEntity {
  @PrimaryColumn('text') id!: string;
  @Column('text', { name: 'workspace_id' }) workspaceId!: string;
  @Column('text') name!: string;
  @Column('jsonb') resource!: Environment;
  @Column('timestamptz', { name: 'created_at' }) createdAt!: Date;
  @Column('timestamptz', { name: 'archived_at', nullable: true }) archivedAt!: Date | null;
}

/** A file's metadata; its bytes are the blob of `digest`. */
@Entity('files')
export class FileEntity {
  @PrimaryColumn('text') id!: string;
  @Column('text', { name: 'workspace_id' }) workspaceId!: string;
  @Column('jsonb') resource!: FileResource;
  @Column('text') digest!: string;
}

/** The read model of sessions: a projection, written in the append transaction alone. */
@Entity('sessions')
export class SessionEntity {
  @PrimaryColumn('text') id!: string;
  @Column('text', { name: 'workspace_id' }) workspaceId!: string;
  @Column('jsonb') view!: SessionView;
  @Column('text') status!: string;
  @Column('text', { name: 'agent_id' }) agentId!: string;
  @Column('integer', { name: 'agent_version' }) agentVersion!: number;
  @Column('text', { name: 'environment_id' }) environmentId!: string;
  @Column('timestamptz', { name: 'created_at' }) createdAt!: Date;
  @Column('timestamptz', { name: 'archived_at', nullable: true }) archivedAt!: Date | null;
}

export const catalogueEntities = [
  WorkspaceEntity,
  ApiKeyEntity,
  AgentEntity,
  AgentVersionEntity,
  EnvironmentEntity,
  FileEntity,
  SessionEntity,
];
