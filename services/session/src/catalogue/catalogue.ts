import { type Agent, AppError, type Environment } from '@holdfast/contracts';
import type { DataSource } from 'typeorm';
import { AgentEntity, AgentVersionEntity, EnvironmentEntity, FileEntity } from './catalogue.entities.ts';

/** Reads of the catalogue, always within a workspace: another workspace's objects do not exist. */
export class Catalogue {
  readonly #source: DataSource;

  constructor(source: DataSource) {
    this.#source = source;
  }

  /** The newest version of an agent. @throws AppError `agent.not-found` */
  async agent(workspaceId: string, id: string): Promise<Agent> {
    const found = await this.#source.getRepository(AgentEntity).findOneBy({ id, workspaceId });
    if (found === null) throw new AppError('not-found', 'agent.not-found', `There is no agent ${id}.`);
    return found.resource;
  }

  /** One version of an agent. @throws AppError `agent.not-found` */
  async agentVersion(workspaceId: string, agentId: string, version: number): Promise<Agent> {
    const found = await this.#source.getRepository(AgentVersionEntity).findOneBy({ agentId, workspaceId, version });
    if (found === null)
      throw new AppError('not-found', 'agent.not-found', `There is no version ${version} of agent ${agentId}.`);
    return found.resource;
  }

  /** @throws AppError `environment.not-found` */
  async environment(workspaceId: string, id: string): Promise<Environment> {
    const found = await this.#source.getRepository(EnvironmentEntity).findOneBy({ id, workspaceId });
    if (found === null) throw new AppError('not-found', 'environment.not-found', `There is no environment ${id}.`);
    return found.resource;
  }

  /** A file and where its bytes are. @throws AppError `file.not-found` */
  async file(workspaceId: string, id: string): Promise<FileEntity> {
    const found = await this.#source.getRepository(FileEntity).findOneBy({ id, workspaceId });
    if (found === null) throw new AppError('not-found', 'file.not-found', `There is no file ${id}.`);
    return found;
  }
}
